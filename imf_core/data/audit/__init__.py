"""The audit of a graph: what is wrong with it, what can be repaired, what needs no training."""
