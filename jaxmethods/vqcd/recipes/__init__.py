"""What `jaxmethods run` runs of VQ-CD: sequences of tasks, their data, plays, figures and tables."""
