"""A neural network in NumPy, without autograd, as the article derives it: an independent oracle for torch's.

Arrays are batched, a row for each example: activations a (B, fan_in), weights W (fan_out, fan_in) as in the article,
z = a·Wᵀ + b. In the backward pass δ = ∂L/∂z (B, fan_out) gives ∂L/∂W = δᵀ·a, the sum over the batch of the article's
δ·aᵀ. float64 inputs give float64 outputs, and float32 inputs float32.
"""
