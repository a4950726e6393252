"""Static merges of checkpoint folders that need not fit in memory together."""
