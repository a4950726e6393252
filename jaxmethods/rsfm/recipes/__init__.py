"""What `jaxmethods run` runs: input, output, figures and tables."""
