"""The input of a replay: accessors with their faults and pages, from a trace or synthetic."""
