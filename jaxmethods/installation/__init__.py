"""What was installed: the configs that came with the package, and what works on this machine."""
