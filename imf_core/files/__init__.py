"""Files and folders: atomic writes, caches, digests, locks."""
