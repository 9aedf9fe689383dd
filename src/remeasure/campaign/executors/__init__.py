"""Executors: the processes that train a campaign's seeds."""
