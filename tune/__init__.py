"""Distributed hyperparameter search over `imf_core`: the only part that knows Ray, Optuna and MLflow."""
