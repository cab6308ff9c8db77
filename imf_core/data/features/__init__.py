"""Ready-made feature files and the modality they become."""
