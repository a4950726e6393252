"""A small run of a team that several files train."""

SMALL = {
    "method": "commformer",
    "environment": {"name": "predator_prey", "n_predators": 3, "dim": 3},
    "environment_steps": 4 * 8 * 8,
    "network": {"embed": 8},
    "graph": {"warmup_updates": 1},
    "ppo": {"environments": 8, "rollout": 8, "minibatches": 1},
    "evaluation": {"episodes": 16},
    "training": {"log_every": 2, "evaluate_every": 4, "checkpoint_every": 2},
}
"""Four updates, one with a raw graph and three with a sampled one, each with an upper epoch."""
