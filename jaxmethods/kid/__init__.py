"""KID: a small model learns from a large one on gold SQL with its own mistakes in it."""
