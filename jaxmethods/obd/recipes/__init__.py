"""What `jaxmethods run` runs of OBD: all its files, figures and tables."""
