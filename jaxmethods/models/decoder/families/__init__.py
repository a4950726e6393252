"""Decoder families: what their `config.json` says and which tensors their checkpoints hold.

A family is a reader of its config, a writer of it, and a table of its tensors. A setting that we
don't implement is an error that names the field, never silently another model.
"""
