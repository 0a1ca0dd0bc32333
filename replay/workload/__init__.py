"""What is replayed: accessors, their faults and pages; from a trace or made."""
