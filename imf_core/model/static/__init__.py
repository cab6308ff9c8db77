"""The static step: the training step of `Imf` in shapes that a GPU knows beforehand, with all branches in one launch."""
