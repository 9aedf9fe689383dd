"""Measures everything that needs a GPU, with one command: `python -m remeasure.bench.gpu` (docs/gpu.md).

sizes      how much is measured, on a GPU and in the rehearsal
__main__   the steps by name, the most important first
rows       records of rows, as results/ holds them
speeds     images a second of inference and of optimiser steps
graphs     steps as CUDA graphs: are the numbers the same, and what is saved
timing     the clock, and a separate process for calls that may damage theirs
report     gpu.json and gpu.md
"""
