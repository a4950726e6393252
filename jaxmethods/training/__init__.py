"""Runs recipes: stages that train, compute and write, checkpoints, stopping."""
