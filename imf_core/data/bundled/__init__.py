"""Data sets made on the spot from the Unicode tables of Python."""
