"""Losses over all entities (1-N): dense reference forms, one-pass forms, estimates from a sample; contrastive; distillation."""
