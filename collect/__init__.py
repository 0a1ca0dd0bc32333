"""eBPF collectors and the recorder: a host's events into a trace."""
