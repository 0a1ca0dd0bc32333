"""From the ring buffer to Parquet parts: draining, limits, rotation, the live status."""
