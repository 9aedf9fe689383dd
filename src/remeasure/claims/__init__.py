"""What the article claims beside its table, measured and judged: `make claims`.

ledger, verdict     conf/claims.yaml, the rule of each claim, results/claims.md: no torch
analytic, filters   experiments that compute or read: formulas, sums over all masks, committed records, filters
numpy_trainings     trainings of the network from scratch
trainings           trainings as rows have them, each arm by each seed, in runs/claims
"""
