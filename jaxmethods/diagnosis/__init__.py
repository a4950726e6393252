"""Diagnostics of whatever a run has trained: what `method: interpret` runs, above all methods."""
