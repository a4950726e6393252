"""Settings of every test: property tests without deadlines, since a first call compiles."""

from __future__ import annotations

import hypothesis

hypothesis.settings.register_profile("jax", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("jax")
