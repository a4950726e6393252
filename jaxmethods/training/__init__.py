"""The training loop, checkpoints, metric writers and reports that serve every method."""
