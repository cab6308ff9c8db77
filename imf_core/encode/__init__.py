"""Encoders: what an entity looks like or is called -> a feature vector and whether there is one."""
