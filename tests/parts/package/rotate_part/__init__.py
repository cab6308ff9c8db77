"""Parts for IMF Search, found by their entry points."""
