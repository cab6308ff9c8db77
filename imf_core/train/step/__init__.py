"""A single training step: planned, packed for the device, run, perhaps captured, undone where memory runs out."""
