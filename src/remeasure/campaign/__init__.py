"""Measures rows until they are decided: chooses seeds, their order and processes, and publishes the results."""
