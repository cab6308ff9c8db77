"""Pictures of a study: plots as files, and drawings for the page."""
