"""Photographs that stay in their files: decoded, augmented, trained on, evaluated."""
