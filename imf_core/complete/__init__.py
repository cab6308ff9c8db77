"""The most certain new facts of a graph, as a list and as a page."""
