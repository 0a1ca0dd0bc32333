"""The trace format: schema, storage, stitching. The lowest layer: it imports none of the other packages."""
