"""Networks, their initial weights and the checkpoints they are read from."""
