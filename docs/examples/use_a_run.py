"""python docs/examples/use_a_run.py runs/example: train from Python, open the run, play.

A config is a mapping, or the path of a YAML file; the run folder is what `jaxmethods run` leaves.
"""

import sys

import jax

import jaxmethods

CONFIG = {
    "method": "commformer",
    "environment": {"name": "predator_prey", "n_predators": 2, "dim": 3, "vision": 1},
    "environment_steps": 480,  # a demonstration: a team that has learned needs 100,000
    "network": {"embed": 8},
    "ppo": {"environments": 8, "rollout": 5},
    "evaluation": {"episodes": 16, "max_steps": 10},
}


def main(folder: str) -> None:
    """Trains, reads, plays."""
    jaxmethods.run(CONFIG, folder, seed=3)

    run = jaxmethods.load_run(folder)  # later, or in another program
    print("success rate", run.metrics["train"]["success_rate"])  # [seeds]
    policy = run.ready()  # observation -> actions
    env = run.config.environment.make()
    reset, step = jax.jit(env.reset), jax.jit(env.step)
    state, timestep = reset(jax.random.key(0))
    for _ in range(10):
        state, timestep = step(state, policy(timestep.observation))
    print("after ten moves", timestep.extras["success"])


if __name__ == "__main__":
    main(sys.argv[1])
