"""The discrete-event engine: one compiled loop, host CPUs, windows."""
