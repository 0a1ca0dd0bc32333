"""Predictions compared with measured reality: validation, accuracy, intervals."""
