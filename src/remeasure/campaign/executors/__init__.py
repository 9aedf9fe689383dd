"""Who trains the seeds of a campaign."""
