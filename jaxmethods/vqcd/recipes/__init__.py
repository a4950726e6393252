"""What `jaxmethods run` runs of VQ-CD: sequences of tasks, plays, figures, tables."""
