"""Environments of a team: N agents on a grid or on roads."""
