"""Commands about link predictors: train, evaluate, predict, compare, ensemble, export."""
