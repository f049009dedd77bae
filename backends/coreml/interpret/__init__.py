"""The reference interpreter: evaluates a saved program operation by operation, with NumPy."""
