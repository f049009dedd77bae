"""Graph in, graph out: clean, fuse, legalize, quantize; and what is known of a graph: shapes, blocks, cost."""
