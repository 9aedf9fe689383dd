"""Files, formats, locks and signals; no torch."""
