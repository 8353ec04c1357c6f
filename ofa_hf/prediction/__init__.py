"""Predictions for files, folders and data sets: read ahead, run the model, write the answers."""
