"""Datasets that stream, and the metrics that are computed on them."""
