"""What is made of a run's folder: result, curves, report, comparison."""
