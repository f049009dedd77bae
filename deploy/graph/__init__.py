"""Graph in, graph out: clean, fuse, legalize, quantize; what is known of a graph: shapes, blocks, cost."""
