"""What lies on disk or passes between stages. Nothing here computes; everything above stands on it."""
