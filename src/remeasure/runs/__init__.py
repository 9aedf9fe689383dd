"""One run: RunSpec and seed to RunRecord, and its folder under runs/."""
