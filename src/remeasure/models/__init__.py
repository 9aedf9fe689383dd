"""The networks of the table, published weights, and the network from scratch."""
