"""What a trace is: schema, store, stitching. The bottom of the house: imports none of the other packages."""
