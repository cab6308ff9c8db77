"""The time budget of a study: how it is divided, and when it is over."""
