"""CommFormer: a team learns whom to listen to.

N agents share a directed graph with k = max(floor(N S), 1) incoming edges each; a transformer
encoder-decoder whose attention follows the graph maps observations to values and, agent after
agent, to actions. Network parameters (lower level) and edge logits alpha (upper level) are trained
alternately by PPO on the same roll-outs:

    min_alpha L(phi*(alpha), alpha)    with    phi*(alpha) = argmin_phi L(phi, alpha)

Hu et al., "Learning Multi-Agent Communication from Graph Modeling Perspective", ICLR 2024,
arXiv 2405.08550. Equations and sections are named where they are implemented.

    from jaxmethods import commformer, envs
    env = envs.make("predator_prey")
    network, graph, ppo = commformer.clean()
    method = commformer.trainer(env, network, graph, ppo, updates=60)

Each piece is usable alone: `graph` (k-hot graphs with straight-through gradients), `gate` (who
listens at which step), `attention` and `network` (Flax modules), `policy` (acting and teacher
forcing), `objectives` (value normalization, advantages, the PPO loss). The baselines MAT, IPPO and
MAPPO (`mlp`) are values of `NetworkConfig.model`.
"""

from jaxmethods.commformer import attention, gate, graph, objectives, policy
from jaxmethods.commformer.config import GateConfig as GateConfig
from jaxmethods.commformer.config import GraphConfig as GraphConfig
from jaxmethods.commformer.config import NetworkConfig as NetworkConfig
from jaxmethods.commformer.config import PPOConfig as PPOConfig
from jaxmethods.commformer.config import clean, reference
from jaxmethods.commformer.evaluate import evaluate
from jaxmethods.commformer.experience import State as State
from jaxmethods.commformer.method import trainer
from jaxmethods.commformer.network import CommFormer as CommFormer

__all__ = [
    "attention",
    "clean",
    "evaluate",
    "gate",
    "graph",
    "objectives",
    "policy",
    "reference",
    "trainer",
]
