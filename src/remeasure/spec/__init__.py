"""Specifications of runs and their results: frozen dataclasses, standard library only."""

__version__ = "0.1.0"  # not read from metadata: a checkout that was copied to a borrowed machine is not installed
