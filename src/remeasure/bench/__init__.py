"""Speed side by side with what a user would write instead; `python -m remeasure.bench` measures and reports it."""
