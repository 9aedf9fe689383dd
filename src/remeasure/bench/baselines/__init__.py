"""Baselines of `make bench`: loops that a user would write instead, and the machine's limits."""
