"""A neural network from nothing but NumPy, as the article derives it: an independent oracle for the one of torch.

Arrays are batched, a row for each example: activations a (B, fan_in), weights W (fan_out, fan_in) as in the article,
z = a·Wᵀ + b. Backward, δ = ∂L/∂z (B, fan_out) gives ∂L/∂W = δᵀ·a, the sum over the batch of the article's δ·aᵀ. What
comes in as float64 stays float64, and float32 stays float32.
"""
