"""Workloads, mechanisms and costs as data, and the one engine that runs them."""
