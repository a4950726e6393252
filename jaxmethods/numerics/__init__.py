"""Exact sums, random keys, sampling, error bars, linear algebra: what methods share."""
