"""A sequence of three generated tasks of different sizes, as small as can be."""

from __future__ import annotations

import yaml

from jaxmethods.vqcd.recipes.learners import Learner
from jaxmethods.vqcd.recipes.tasks import Tasks

TINY = """
method: vqcd
seed: 3
seeds: 2
tasks:
  - {name: pendulum, generate: mixed, episodes: 2, environment: {name: pendulum, time_limit: 12}}
  - {name: point, generate: expert, episodes: 7, environment: {name: point_mass, time_limit: 12}}
  - name: system
    generate: medium
    episodes: 5
    environment: {name: linear, states: 5, actions: 2, time_limit: 12}
alignment:
  states: {encoder: [8], decoder: [8], codes: 8, latents: 3, steps: 4, batch: 8}
  actions: {encoder: [8], decoder: [8], codes: 8, latents: 2, steps: 4, batch: 8}
planner:
  network: {kind: mlp, hidden: 16, layers: 2, dim: 8, horizon: 4}
  diffusion: {steps: 4, stride: 2}
  batch: 8
  inverse_hidden: 8
  lr: 1.0e-2
  ema_start: 2
  ema_every: 1
steps: 4
learners: [vqcd, finetune]
evaluation: {episodes: 2}
training: {log_every: 4, evaluate_every: 4, checkpoint_every: 4}
"""
NAMES = ("pendulum", "point", "system")


def values(**changes):
    return yaml.safe_load(TINY) | changes


def parts(run):
    """Tasks and learners of a finished run."""
    return Tasks(run.config), [Learner(run.config, one) for one in run.config.learners]
