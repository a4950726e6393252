"""Control environments: one agent, continuous actions."""
