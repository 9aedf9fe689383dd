"""Photographs read from their files on demand: decoding, augmentation, training, evaluation."""
