"""Rows until they are decided: which seeds, in which order, on which processes, and what is published."""
