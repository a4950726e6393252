"""VQ-CD: one planner for a sequence of offline tasks of different sizes that forgets none.

Every task's states and actions are mapped by small vector-quantized autoencoders into one bounded
space; one temporal U-Net diffuses state sequences there, and every task owns a random, disjoint
share of its weights:

    |x - D(z)|^2 + |sg(z_e) - z_q|^2 + beta |sg(z_q) - z_e|^2,   z = z_e + sg(z_q - z_e)
    |eps(x_k, k, R; W * M_i) - eps|^2 + |f(s_t, s_{t+1}) - a_t|^2,   sum_i M_i = 1

Hu et al., "Tackling Continual Offline RL through Selective Weights Activation on Aligned Spaces",
NeurIPS 2025, arXiv 2410.15698. Equations and sections are named where they are implemented.

    from jaxmethods import vqcd
    method, bank = vqcd.planner(config), vqcd.initial_bank(key, config)
    feed = vqcd.Feed(data, task, bank)                         # one task's aligned windows
    state = method.init(key, feed)
    state, metrics = method.step(state, feed)                  # ... some thousand times
    bank = vqcd.finish(config, state)                          # what the next task begins with

Each piece is usable alone: `alignment` and `aligner` (autoencoders with codes and their training),
`diffusion` (schedules and samplers), `activation` (owners of weights), `bank` (all tasks' weights
as one tree), `policy` (acting), `windows` and `task_data` (what is trained on), `baselines`,
`metrics` (forgetting, forward transfer), `torch_weights` (published checkpoints). The network is
`jaxmethods.models.temporal_unet`.
"""

from jaxmethods.models.temporal_unet_config import TemporalNetworkConfig as TemporalNetworkConfig
from jaxmethods.vqcd import activation, baselines, diffusion, metrics, policy
from jaxmethods.vqcd.bank import TaskWeights as TaskWeights
from jaxmethods.vqcd.bank import initial_bank, join_banks, task_weights
from jaxmethods.vqcd.config import AlignmentConfig as AlignmentConfig
from jaxmethods.vqcd.config import DiffusionConfig as DiffusionConfig
from jaxmethods.vqcd.config import PlannerConfig as PlannerConfig
from jaxmethods.vqcd.config import PolicyConfig as PolicyConfig
from jaxmethods.vqcd.data import windows
from jaxmethods.vqcd.data.task_data import (
    bounds,
    gather,
    join_tasks,
    last_windows,
    stack_tasks,
    task_data,
)
from jaxmethods.vqcd.data.windows import Statistics as Statistics
from jaxmethods.vqcd.data.windows import returns_to_go, statistics, window_starts
from jaxmethods.vqcd.method import finish, planner
from jaxmethods.vqcd.policy import Memory as Memory
from jaxmethods.vqcd.policy import TaskSpace as TaskSpace
from jaxmethods.vqcd.policy import act, begin, plan
from jaxmethods.vqcd.spaces import aligner, alignment, codebook
from jaxmethods.vqcd.spaces.aligner import AlignmentRows as AlignmentRows
from jaxmethods.vqcd.spaces.aligner import alignment_rows, parallel, trimmed
from jaxmethods.vqcd.spaces.alignment import align_rows, feature_difference
from jaxmethods.vqcd.torch_weights import from_torch
from jaxmethods.vqcd.types import Bank as Bank
from jaxmethods.vqcd.types import Feed as Feed
from jaxmethods.vqcd.types import Penalty as Penalty
from jaxmethods.vqcd.types import State as State
from jaxmethods.vqcd.types import TaskData as TaskData

__all__ = [
    "act",
    "activation",
    "align_rows",
    "aligner",
    "alignment",
    "alignment_rows",
    "baselines",
    "begin",
    "bounds",
    "codebook",
    "diffusion",
    "feature_difference",
    "finish",
    "from_torch",
    "gather",
    "initial_bank",
    "join_banks",
    "join_tasks",
    "last_windows",
    "metrics",
    "parallel",
    "plan",
    "planner",
    "policy",
    "returns_to_go",
    "stack_tasks",
    "statistics",
    "task_data",
    "task_weights",
    "trimmed",
    "window_starts",
    "windows",
]
