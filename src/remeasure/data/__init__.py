"""Data sets in their official order, verified and fingerprinted. Importing it does not import torch."""
