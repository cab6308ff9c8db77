"""Interactions of users and items."""
