"""Checks that find what is wrong with a training and where it began."""
