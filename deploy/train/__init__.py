"""Training of a graph: the graph goes in, the same graph with other weights comes out."""
