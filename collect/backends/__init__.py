"""What talks to the kernel: the probe table, the BPF programs and their loaders (bcc, bpftrace)."""
