"""How optimiser steps are made: one seed, several as one, or NumPy alone; and Lightning's loop around them."""
