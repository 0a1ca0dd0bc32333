"""Predictions held against measured reality: validation, accuracy, intervals."""
