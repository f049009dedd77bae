"""Accuracy on data, and latency and memory on this machine."""
