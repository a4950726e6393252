"""What `jaxmethods run` runs of the diagnostics."""
