"""The plan of a study: what is checked and decided before the first trial."""
