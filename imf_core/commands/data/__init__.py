"""Commands about graphs and features: audit, convert, encode."""
