"""Readers of the formats users have, safe on bad files."""
