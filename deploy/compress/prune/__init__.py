"""Structured pruning: channels, heads and widths go with all that is tied to them; what is left is dense."""
