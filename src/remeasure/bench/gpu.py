"""All that is open on a GPU, measured by one command: `python -m remeasure.bench.gpu` (docs/gpu.md).

sizes      how much is measured, there and in the rehearsal
steps      the steps by name, the most wanted first
rows       records of rows, as results/ holds them
speeds     images a second of inference and of optimiser steps
graphs     steps as CUDA graphs: do they train to the same numbers, and what do they save
timing     the clock, and a process apart for what may spoil one
report     gpu.json and gpu.md
"""
