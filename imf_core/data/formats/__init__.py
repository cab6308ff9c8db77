"""File formats of graphs: recognising, reading and writing them."""
