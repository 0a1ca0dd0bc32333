"""Calibration, accuracy, comparison, validation: records in, records out; nothing is printed here."""
