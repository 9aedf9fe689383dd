"""Training and inference on images in memory or in files, and the engines."""
