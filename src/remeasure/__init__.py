"""Measures a table of published benchmark accuracies again, and judges each number."""
