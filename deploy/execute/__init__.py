"""Graphs that run: ONNX Runtime as the reference, and the comparison of two graphs on the same inputs."""
