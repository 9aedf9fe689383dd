"""A project of the user's: its folder, and rows for its ledger."""
