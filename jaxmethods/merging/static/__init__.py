"""Merges that are computed at once, from weights alone or with statistics of activations."""
