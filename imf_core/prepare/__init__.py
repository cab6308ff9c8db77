"""From the files of a graph to what a model trains on."""
