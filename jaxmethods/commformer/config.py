"""CommFormer's configuration: what is built (network, graph), how it is trained (PPO), its run.

The defaults are the `clean` preset. `reference()` reproduces the published code
(commit c6cd65ea of charleshsc/CommFormer), its numerical habits included.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from jaxmethods.config import Config, Fraction, OnResume, TrainingRunConfig
from jaxmethods.envs.config import EnvironmentConfig


class GateConfig(Config):
    """The temporal gate: each agent decides at every step whether to listen.

    The idea is that of the extended paper (arXiv 2411.00382), which has no code; the formulas are
    this library's reconstruction, see `gate`.
    """

    mode: Literal["deterministic", "sampled"] = "deterministic"
    """Threshold the gate in training too, or draw it (and replay the draw in training)."""
    penalty: NonNegativeFloat = 1e-3
    """lambda_g: weight of the mean gate in the loss."""
    target: Fraction | None = None
    """Penalize only the share of open gates above this; None: all of it."""
    penalty_from: Fraction = 0.0
    """Share of the updates before the penalty begins: a team that has not learned to talk yet
    would close its gates for good."""
    initial_logit: float = 2.0
    """Bias of the gate's last layer at the start; 2 is open with probability 0.88."""


class NetworkConfig(Config):
    """The encoder-decoder of MAT with relation-enhanced attention over a graph."""

    model: Literal["commformer", "mat", "ippo", "mappo"] = "commformer"
    """`mat`: the same transformer, everyone hears everyone, no relation term, one plain action
    head. `ippo`: one MLP for all agents, each for itself; `mappo`: with a critic of all
    observations. Only `commformer` reads the graph."""
    embed: PositiveInt = 64
    """Width E of every token; divisible by `heads`."""
    heads: PositiveInt = 1
    blocks: PositiveInt = 1
    action_head: Literal["per_agent", "shared"] = "per_agent"
    """`commformer` alone: one small MLP for each agent, or one for all."""
    gate: GateConfig | None = None
    """Let agents stop listening at single steps (`commformer` only)."""
    relation: bool = True
    """Add the embedding of the edge's type to query and key."""
    relation_transpose: bool = False
    """Read the edge type of i <- j from G_ji, as the published code does."""
    attention_scale: Literal["single", "double"] = "single"
    """Scale scores by 1/sqrt(d), or by 1/d as the published code does with the relation term."""
    self_loop: Literal["set", "add"] = "set"
    """Diagonal of the mask: set to 1, or G_ii + 1 (doubles the weight of a selected self edge)."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout rate in the encoder, in the PPO forward only."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type; parameters, softmax and losses stay float32."""

    @model_validator(mode="after")
    def _fields_fit(self) -> NetworkConfig:
        if self.embed % self.heads:
            raise ValueError(f"heads: expected a divisor of embed = {self.embed}, got {self.heads}")
        if self.gate is not None and self.model != "commformer":
            raise ValueError(f"gate: expected null with model {self.model!r}, got {self.gate!r}")
        return self

    @property
    def reads_graph(self) -> bool:
        """Whether anything depends on the communication graph."""
        return self.model == "commformer"


class GraphConfig(Config):
    """Who listens to whom: a k-hot directed graph with learnable edge logits alpha."""

    kind: Literal["learned", "full", "none", "random", "fixed"] = "learned"
    """`learned`, or a graph that stays: every edge, none, k random senders, that of `edges`."""
    edges: tuple[tuple[Literal[0, 1], ...], ...] | None = None
    """The graph of `fixed`: rows of 0 and 1, one a receiver, one column a sender."""
    sparsity: Annotated[float, Field(gt=0.0, le=1.0)] = 0.4
    """S: each agent receives from k = max(floor(N S), 1) senders."""
    self_edges: bool = True
    """Let an agent choose itself as one of its k senders, as the published code does. It hears
    itself in any case: without, all k edges carry messages."""
    learning_rate: NonNegativeFloat = 1e-2
    """Step size of Adam on alpha (the published code uses 1e-4, which hardly moves alpha)."""
    init_noise: NonNegativeFloat = 1e-2
    """Standard deviation around 1 of the initial alpha; 0 leaves all ties."""
    warmup_updates: NonNegativeInt = 10
    """Updates trained on the raw alpha before graphs are sampled."""
    training_graph: Literal["rollout", "resample"] = "rollout"
    """`rollout`: one noise for acting and training of an update (ratio 1 at the first epoch);
    `resample`: act on the exact graph, fresh noise at every training forward (published code)."""
    post_stable: bool = False
    """Train on the exact graph with frozen alpha after `post_ratio` of the updates."""
    post_ratio: Fraction = 0.5
    levels: Literal["alternating", "joint", "frozen"] = "alternating"
    """How a learned graph moves: in epochs of its own, with the network in every step, or not at
    all (the published code without its bi-level switch)."""
    upper_every: PositiveInt = 5
    """Every how many epochs the upper level (alpha) steps instead of the network."""
    unroll: Literal[0, 1] = 0
    """Network steps that alpha's gradient looks through: 0 takes the network as it is."""
    unroll_rate: NonNegativeFloat | None = None
    """xi: learning rate of the step looked through; None: the network's."""
    upper_data: Literal["same", "split"] = "same"
    """Train both levels on the same samples, or alpha on those of held-out environments."""
    upper_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.25
    """Share of the environments held out by `split`."""

    @model_validator(mode="after")
    def _fields_fit(self) -> GraphConfig:
        if self.kind == "fixed" and self.edges is None:
            raise ValueError(
                "edges: is required with kind: fixed; write a row of 0 and 1 for each agent, "
                "edges: [[1, 0], [1, 1]]"
            )
        if self.kind != "fixed" and self.edges is not None:
            raise ValueError(f"edges: expected null with kind: {self.kind}; write kind: fixed")
        if self.levels != "alternating" and (self.unroll or self.upper_data == "split"):
            raise ValueError(
                f"levels: expected 'alternating' with unroll or split data, got {self.levels!r}"
            )
        return self


class PPOConfig(Config):
    """Proximal policy optimization with value normalization."""

    environments: PositiveInt = 128
    """R: environments simulated in parallel."""
    rollout: PositiveInt = 32
    """T: steps taken in each environment before an update."""
    epochs: PositiveInt = 5
    minibatches: PositiveInt = 2
    shuffle_shares: PositiveInt = 1
    """Shuffle samples within this number of equal shares of the environments; a minibatch takes the
    same number of every share. With a multiple of `mesh.data` shares no sample changes device."""
    clip: PositiveFloat = 0.2
    """epsilon of the policy ratio and of the value clipping."""
    discount: Fraction = 0.99
    gae_lambda: Fraction = 0.95
    entropy_coefficient: NonNegativeFloat = 0.01
    value_coefficient: NonNegativeFloat = 1.0
    huber_delta: PositiveFloat = 10.0
    learning_rate: PositiveFloat = 1e-3
    adam_epsilon: PositiveFloat = 1e-5
    max_grad_norm: PositiveFloat = 0.5
    """Global-norm clip of the network's gradient; alpha's is never clipped."""
    bootstrap_truncated: bool = False
    """Value the state that a time limit cut off, in place of taking the cut for an end."""
    anneal: bool = False
    """Decay the network's learning rate linearly to 0 over the run."""


class Preset(NamedTuple):
    """The three configs of one way to run CommFormer; unpacks like a tuple."""

    network: NetworkConfig
    graph: GraphConfig
    ppo: PPOConfig


def clean() -> Preset:
    """The defaults: the published method without the habits of its code listed in `reference`.

    Returns:
        Configs of network, graph and PPO.
    """
    return Preset(NetworkConfig(), GraphConfig(), PPOConfig())


def reference() -> Preset:
    """The published code's settings for Predator-Prey, numerical habits included.

    Edge types are read transposed, scores with the relation term are scaled twice by
    1/sqrt(d), a selected self edge counts twice, and graphs are sampled anew at every
    training forward while acting uses the exact one.

    Returns:
        Configs of network, graph and PPO.
    """
    return Preset(
        NetworkConfig(
            relation_transpose=True, attention_scale="double", self_loop="add", dropout=0.1
        ),
        GraphConfig(learning_rate=1e-4, init_noise=0.0, training_graph="resample"),
        PPOConfig(
            environments=20,
            rollout=200,
            epochs=10,
            minibatches=1,
            clip=0.05,
            learning_rate=5e-4,
            max_grad_norm=10.0,
        ),
    )


class EvaluationConfig(Config):
    """Greedy evaluation on the hardened graph."""

    episodes: PositiveInt = 1000
    max_steps: PositiveInt = 20
    """Episodes that last longer count as failures."""


class CommFormerRun(TrainingRunConfig):
    """A CommFormer training run."""

    method: Literal["commformer"]
    environment: EnvironmentConfig
    environment_steps: Annotated[PositiveInt, OnResume.GROW]
    """Steps of the whole run, all parallel environments together; rounded up to whole updates."""
    network: NetworkConfig = NetworkConfig()
    graph: GraphConfig = GraphConfig()
    ppo: PPOConfig = PPOConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _sizes_fit(self) -> CommFormerRun:
        samples = self.ppo.environments * self.ppo.rollout
        if self.ppo.minibatches > samples:
            raise ValueError(
                f"ppo.minibatches: expected at most the {samples} samples of an update, "
                f"got {self.ppo.minibatches}"
            )
        if self.graph.upper_data == "split" and self.ppo.environments < 2:
            raise ValueError("graph.upper_data: split needs two ppo.environments, got 1")
        shares = self.ppo.shuffle_shares
        if self.ppo.environments % shares or self.ppo.minibatches > samples // shares:
            raise ValueError(
                f"ppo.shuffle_shares: expected a divisor of ppo.environments "
                f"({self.ppo.environments}) with samples for every minibatch, got {shares}"
            )
        return self

    @property
    def updates(self) -> int:
        return -(-self.environment_steps // (self.ppo.environments * self.ppo.rollout))
