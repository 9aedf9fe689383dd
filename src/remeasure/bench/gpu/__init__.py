"""Measures everything that needs a GPU, with one command: `make gpu`."""
