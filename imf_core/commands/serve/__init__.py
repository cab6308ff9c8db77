"""`imf serve`: predictions over HTTP."""
