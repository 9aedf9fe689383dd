"""The networks of the table, published weights, and a network in NumPy alone (scratch)."""
