"""The journal of a study, and the search that follows from it."""
