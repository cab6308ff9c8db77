"""Reports of a finished study: tables, plots, the HTML page."""
