"""Checkpoints on disk, and carrying their weights over to a changed graph."""
