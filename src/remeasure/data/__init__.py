"""Data sets in their official order, verified and fingerprinted. NumPy only: torch comes later."""
