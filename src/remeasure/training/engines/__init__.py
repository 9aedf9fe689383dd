"""The engines: one seed in torch, several seeds stacked, one seed in NumPy; and Lightning's loop around them."""
