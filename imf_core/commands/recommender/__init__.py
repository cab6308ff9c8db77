"""Commands about recommenders."""
