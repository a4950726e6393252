"""What `jaxmethods run` runs of NoVo: all its files and figures."""
