"""Fusion operators."""
