"""Merges that are trained at test time, or mix experts for every input."""
