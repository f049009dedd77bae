"""Compression of a graph: sparse, low-rank and shared weights, and files of them at rest."""
