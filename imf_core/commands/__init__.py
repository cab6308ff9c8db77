"""The commands of `imf` that have a file of their own, and what they share."""
