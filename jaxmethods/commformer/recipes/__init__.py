"""What `jaxmethods run` runs of CommFormer: its config, its stage, its figures."""
