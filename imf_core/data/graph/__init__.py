"""The knowledge graph, its splits, and the mending of what is wrong with them."""
