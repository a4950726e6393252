"""What `jaxmethods run` runs of the speech-text model: the world, its stages, all files."""
