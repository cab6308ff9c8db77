"""One trial, in process or as a Ray Train DDP run."""
