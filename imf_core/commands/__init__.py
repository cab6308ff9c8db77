"""The commands of `imf` that look after data: audit, convert, encode."""
