"""`imf card`: the model card of a checkpoint."""
