"""Filtered ranking, metrics, and comparisons of models."""
