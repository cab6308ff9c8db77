"""Training and evaluation: batches, the loop, filtered ranking, checkpoints."""
