"""What a planner is trained on: normalized rows, returns to go, windows of aligned tasks."""
