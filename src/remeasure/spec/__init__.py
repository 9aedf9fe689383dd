"""Specifications of runs and their results: frozen dataclasses, standard library only."""
