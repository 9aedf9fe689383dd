"""What the article claims beside its table, measured and judged: `make claims`.

ledger, judgement   conf/claims.yaml, the rule of each claim, results/claims.md: no torch
exact, filters      experiments that compute or read: formulas, sums over all masks, committed records, filters
scratch_runs        trainings of the network from scratch
trainings           trainings as rows have them, each arm by each seed, in runs/claims
"""
