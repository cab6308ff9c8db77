"""Graphs and modalities: from files to `KnowledgeGraph` and aligned features."""
