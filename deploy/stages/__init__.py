"""What each line of the pipeline does: from a request to everything that a bundle is written from."""
