"""Captions for files and folders: what `ofa-hf caption` does."""
