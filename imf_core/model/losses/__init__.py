"""Losses, and the one-pass forms of those that score all entities."""
