"""Costs of a host, from traces and from the lab's short runs."""
