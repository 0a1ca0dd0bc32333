"""Whom to record: processes, VMs, children, and the ranges of memory that are theirs."""
