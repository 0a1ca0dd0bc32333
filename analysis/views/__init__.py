"""One trace, looked at: its faults by choice, over time, by page, thread and range, and one fault's life."""
