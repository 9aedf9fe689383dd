"""Measures and judges the article's claims beside its table: `make claims`.

ledger, verdict     conf/claims.yaml, the rule of each claim, results/claims.md: no torch
analytic, filters   experiments without training: formulas, sums over all masks, committed records, filters
numpy_trainings     trainings of the network from scratch
trainings           trainings like those of rows, for each arm and seed, in runs/claims
"""
