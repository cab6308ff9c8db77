"""From links to features: graph attention with TransE."""
