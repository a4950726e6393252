"""Where a run runs: meshes of devices, processes."""
