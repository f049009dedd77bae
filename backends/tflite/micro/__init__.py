"""TensorFlow Lite Micro: its kernels, the memory they take, a C array of a network, and how it runs."""
