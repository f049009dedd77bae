"""Core ML: the format of Apple's devices. Here so far: reading packages, and evaluating them anywhere."""
