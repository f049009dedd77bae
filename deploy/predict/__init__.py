"""What a graph will take on a device before anything is built: kernels, cost curves, latency."""
