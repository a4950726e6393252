r"""CommFormer's network: a transformer encoder-decoder whose attention follows a graph.

The encoder turns the agents' observations into representations and values; the decoder turns
representations and the actions of earlier agents into action logits, one agent after the other:

    encoder  x_0 = LN(GELU(W LN(o)));  x <- LN(x + Attn(x, x, G));  x <- LN(x + W2 ReLU(W1 x))
    critic   v = w LN(GELU(W rep)),  one value per agent, in normalized units
    decoder  x_0 = LN(GELU(W s)),  s_i = one-hot of a_{i-1};  x <- LN(x + Attn(x, x, G, causal));
             x <- LN(rep + Attn(rep, x, G, causal));  x <- LN(x + W2 GELU(W1 x))
    actor    one small MLP per agent, or one for all
    gate     optional: who listens at this step, decided from x_0 of the encoder (module `gate`)

Post-norm blocks, biased LayerNorm with epsilon 1e-5, GELU in its exact form. Blocks are scanned
and per-agent heads mapped: their parameters carry a leading layer or agent axis. Architecture:
Wen et al., Multi-Agent Reinforcement Learning is a Sequence Modeling Problem, NeurIPS 2022, with
the graph of Hu et al., ICLR 2024 (arXiv 2405.08550). With continuous actions the tokens s_i are
a_{i-1} itself, the actor's outputs are means, and the standard deviation is 0.5 sigmoid(log_std).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmethods.commformer.attention import (
    Cache,
    Edges,
    RelationAttention,
    edges_of,
    has_relation,
)
from jaxmethods.commformer.config import NetworkConfig
from jaxmethods.commformer.gate import Gate, TemporalGate, decide, gated_graph
from jaxmethods.commformer.layers import Dense, LayerNorm, NormalizedDense
from jaxmethods.models.initializers import orthogonal
from jaxmethods.models.products import gelu

RELU_GAIN = math.sqrt(2.0)
OUTPUT_GAIN = 0.01


class DecoderCache(NamedTuple):
    """Keys and values of the agents decoded so far, with a leading axis over blocks."""

    actions: Cache
    """Keys and values of the attention between action tokens, [L, B, H, N, d] each."""
    representations: Cache
    """Keys and values of the attention to representations, [L, B, H, N, d] each."""


class Encoding(NamedTuple):
    """What the encoder makes of B observations."""

    value: jax.Array
    """[B, N] float32, in normalized units."""
    rep: jax.Array
    """[B, N, E] in the compute type."""
    graph: jax.Array
    """[N, N] or, with a gate, [B, N, N]: the graph that messages really took; the decoder's."""
    gate: Gate | None
    """None without a temporal gate."""


class CommFormer(nn.Module):
    """Critic and autoregressive actor of a team of N agents with A actions each.

    `network.init(key, obs, shifted_actions, graph)` makes the parameters; the three methods are
    called as `network.apply(params, ..., method="encode")` and so on.
    """

    config: NetworkConfig
    n_agents: int
    n_actions: int
    """A: discrete actions, or dimensions of a continuous one."""
    continuous: bool = False

    def setup(self) -> None:
        gate = self.config.gate
        self.encoder = Encoder(self.config)
        self.gate = None if gate is None else TemporalGate(gate.initial_logit)
        self.decoder = Decoder(self.config, self.continuous)
        if self.continuous:
            shape = (self.n_actions,)
            self.log_std = self.param("log_std", nn.initializers.ones, shape, jnp.float32)
        if self.config.model == "mat":
            self.head = ActionHead(self.config, self.n_actions, hidden_layers=1, norm_input=False)
        elif self.config.action_head == "shared":
            self.head = ActionHead(self.config, self.n_actions, hidden_layers=2)
        else:
            per_agent = nn.vmap(
                ActionHead,
                in_axes=-2,
                out_axes=-2,
                axis_size=self.n_agents,
                variable_axes={"params": 0},
                split_rngs={"params": True},
            )
            self.head = per_agent(self.config, self.n_actions, hidden_layers=1)
        if has_relation(self.config):
            normal = nn.initializers.normal(1.0)
            self.edge_embedding = self.param(
                "edge_embedding", normal, (2, self.config.embed), jnp.float32
            )
        else:
            self.edge_embedding = None

    def __call__(
        self, obs: jax.Array, shifted_actions: jax.Array, graph: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Logits [B, N, A] and values [B, N] in one pass; touches every parameter."""
        encoding = self.encode(obs, graph)
        return self.decode(shifted_actions, encoding.rep, encoding.graph), encoding.value

    def encode(
        self,
        obs: jax.Array,
        graph: jax.Array,
        deterministic: bool = True,
        gate_noise: jax.Array | None = None,
    ) -> Encoding:
        """Values, representations, and who listened.

        Args:
            obs: [B, N, D] of any real or integer type.
            graph: [N, N] or [B, N, N], rows receive.
            deterministic: False applies dropout and needs a "dropout" random key.
            gate_noise: [B, N] standard logistic noise of a sampled gate; None for none.

        Returns:
            Values [B, N] float32, representations [B, N, E], the graph that messages took, and the
            gate.
        """
        x, gate = self.encoder.embed(obs), None
        if self.gate is not None:
            gate = decide(self.gate(x), gate_noise)
            graph = gated_graph(graph, gate.open)
        edges = edges_of(graph, self.config)
        value, rep = self.encoder(x, edges, self.edge_embedding, deterministic)
        return Encoding(value, rep, graph, gate)

    def decode(self, shifted_actions: jax.Array, rep: jax.Array, graph: jax.Array) -> jax.Array:
        """Logits of every agent, given the actions of the agents before it.

        Args:
            shifted_actions: [B, N, A + 1], row i the one-hot of 1 + agent i-1's action, row 0 of
                0; [B, N, A] if continuous, row i agent i-1's action, row 0 zeros.
            rep: [B, N, E] from `encode`.
            graph: [N, N] or [B, N, N], rows receive; that of `encode`'s result.

        Returns:
            [B, N, A] float32: logits before masking of unavailable actions, or means.
        """
        edges = edges_of(graph, self.config)
        return self.head(self.decoder(shifted_actions, rep, edges, self.edge_embedding))

    def decode_step(
        self,
        shifted_action: jax.Array,
        rep: jax.Array,
        graph: jax.Array,
        cache: DecoderCache,
        index: jax.Array,
    ) -> tuple[jax.Array, DecoderCache]:
        """Row `index` of `decode`, given that the rows before it have been stepped through.

        Args:
            shifted_action: [B, A + 1], row `index` of `decode`'s.
            rep: [B, E], that of agent `index`.
            graph: [N, N] or [B, N, N], rows receive.
            cache: from `init_cache`, or from the step of agent `index` - 1.
            index: [] int32, may be traced.

        Returns:
            Logits [B, A] float32, and the cache for the next agent.
        """
        edges = edges_of(graph, self.config)
        x, cache = self.decoder.step(shifted_action, rep, edges, self.edge_embedding, cache, index)
        if self.config.model == "mat" or self.config.action_head == "shared":
            return self.head(x), cache
        own = jax.tree.map(lambda p: p[index], self.head.variables["params"])
        head = ActionHead(self.config, self.n_actions, hidden_layers=1, parent=None)
        logits: Any = head.apply({"params": own}, x)
        return logits, cache

    def init_cache(self, batch: int) -> DecoderCache:
        """A cache that has seen no agent, for `batch` samples."""
        config = self.config
        width = config.embed // config.heads
        shape = (config.blocks, batch, config.heads, self.n_agents, width)
        empty = Cache(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))
        return DecoderCache(empty, empty)


class Encoder(nn.Module):
    """Embedded observations to values and representations."""

    config: NetworkConfig

    def setup(self) -> None:
        config = self.config
        self.obs_in = NormalizedDense(config.embed, RELU_GAIN, config.dtype)
        self.norm = _norm(config)
        self.blocks = _scan(EncoderBlock, config, __call__=nn.broadcast)(config)
        self.value_hidden = _dense(config, config.embed, RELU_GAIN)
        self.value_norm = _norm(config)
        self.value_out = _dense(config, 1, OUTPUT_GAIN, dtype="float32")

    def embed(self, obs: jax.Array) -> jax.Array:
        """[B, N, D] to [B, N, E]; no agent sees another's."""
        return self.norm(gelu(self.obs_in(obs)))

    def __call__(
        self,
        x: jax.Array,
        edges: Edges,
        edge_embedding: jax.Array | None,
        deterministic: bool,
    ) -> tuple[jax.Array, jax.Array]:
        rep, _ = self.blocks(x, edges, edge_embedding, deterministic)
        value = self.value_out(self.value_norm(gelu(self.value_hidden(rep))))
        return value[..., 0], rep


class EncoderBlock(nn.Module):
    """Attention and a feed-forward layer of width E."""

    config: NetworkConfig

    def setup(self) -> None:
        config, normal = self.config, nn.initializers.normal(0.02)
        self.attention = RelationAttention(config)
        self.attention_norm = _norm(config)
        self.hidden = Dense(config.embed, kernel_init=normal, dtype=config.dtype)
        self.out = Dense(config.embed, kernel_init=normal, dtype=config.dtype)
        self.norm = _norm(config)
        self.dropout = nn.Dropout(config.dropout)

    def __call__(
        self,
        x: jax.Array,
        edges: Edges,
        edge_embedding: jax.Array | None,
        deterministic: bool,
    ) -> tuple[jax.Array, None]:
        heard = self.attention(x, x, edges, edge_embedding, deterministic)
        x = self.attention_norm(x + self.dropout(heard, deterministic))
        hidden = self.dropout(nn.relu(self.hidden(x)), deterministic)
        return self.norm(x + self.dropout(self.out(hidden), deterministic)), None


class Decoder(nn.Module):
    """Shifted actions and representations to the features of the action heads."""

    config: NetworkConfig
    continuous: bool = False

    def setup(self) -> None:
        config = self.config
        self.action_in = _dense(config, config.embed, RELU_GAIN, use_bias=self.continuous)
        self.norm = _norm(config)
        every_block = nn.broadcast
        of_step = (0, every_block, every_block, every_block, every_block)
        self.blocks = _scan(DecoderBlock, config, __call__=every_block, step=of_step)(config)

    def __call__(
        self,
        shifted_actions: jax.Array,
        rep: jax.Array,
        edges: Edges,
        edge_embedding: jax.Array | None,
    ) -> jax.Array:
        x, _ = self.blocks(self._embed(shifted_actions), rep, edges, edge_embedding)
        return x

    def step(
        self,
        shifted_action: jax.Array,
        rep: jax.Array,
        edges: Edges,
        edge_embedding: jax.Array | None,
        cache: DecoderCache,
        index: jax.Array,
    ) -> tuple[jax.Array, DecoderCache]:
        """One agent's row of the decoder, with the keys and values of those before it.

        Args:
            shifted_action: [B, A + 1] one-hot of the action of the agent before, or [B, A] if
                continuous.
            rep: [B, E] representation of the agent.
            edges: the graph.
            edge_embedding: [2, E]; None without relation term.
            cache: of the agents before.
            index: [] int32 of the agent.

        Returns:
            [B, E] of the agent, and the cache with its keys and values.
        """
        x = self._embed(shifted_action)
        return self.blocks.step(x, cache, rep, edges, edge_embedding, index)

    def _embed(self, shifted_actions: jax.Array) -> jax.Array:
        return self.norm(gelu(self.action_in(shifted_actions)))


class DecoderBlock(nn.Module):
    """Attention between action tokens, attention from representations to them, feed-forward."""

    config: NetworkConfig

    def setup(self) -> None:
        config = self.config
        self.self_attention = RelationAttention(config, causal=True)
        self.self_norm = _norm(config)
        self.cross_attention = RelationAttention(config, causal=True)
        self.cross_norm = _norm(config)
        self.hidden = _dense(config, config.embed, RELU_GAIN)
        self.out = _dense(config, config.embed, OUTPUT_GAIN)
        self.norm = _norm(config)

    def __call__(
        self, x: jax.Array, rep: jax.Array, edges: Edges, edge_embedding: jax.Array | None
    ) -> tuple[jax.Array, None]:
        x = self.self_norm(x + self.self_attention(x, x, edges, edge_embedding))
        # The residual is the representation: the only way observations reach the actor.
        x = self.cross_norm(rep + self.cross_attention(rep, x, edges, edge_embedding))
        return self._feed_forward(x), None

    def step(
        self,
        x: jax.Array,
        cache: DecoderCache,
        rep: jax.Array,
        edges: Edges,
        edge_embedding: jax.Array | None,
        index: jax.Array,
    ) -> tuple[jax.Array, DecoderCache]:
        """One agent's row of a block.

        Args:
            x: [B, E] of the agent.
            cache: keys and values of the agents before, of this block.
            rep: [B, E] representation of the agent.
            edges: the graph.
            edge_embedding: [2, E]; None without relation term.
            index: [] int32 of the agent.

        Returns:
            [B, E], and the cache with the agent's keys and values.
        """
        heard, actions = self.self_attention.step(x, x, edges, edge_embedding, cache.actions, index)
        x = self.self_norm(x + heard)
        heard, representations = self.cross_attention.step(
            rep, x, edges, edge_embedding, cache.representations, index
        )
        x = self.cross_norm(rep + heard)
        return self._feed_forward(x), DecoderCache(actions, representations)

    def _feed_forward(self, x: jax.Array) -> jax.Array:
        return self.norm(x + self.out(gelu(self.hidden(x))))


class ActionHead(nn.Module):
    """Features [..., E] to action logits (or means) [..., A] float32."""

    config: NetworkConfig
    n_actions: int
    hidden_layers: int
    norm_input: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.norm_input:
            x = _norm(self.config, name="norm")(x)
        for layer in range(self.hidden_layers):
            x = gelu(_dense(self.config, self.config.embed, RELU_GAIN, name=f"hidden_{layer}")(x))
            x = _norm(self.config, name=f"norm_{layer}")(x)
        return _dense(self.config, self.n_actions, OUTPUT_GAIN, dtype="float32", name="out")(x)


def _scan(block: type[nn.Module], config: NetworkConfig, **in_axes: Any) -> Callable[..., Any]:
    """Makes the class of `config.blocks` blocks in a row, parameters stacked along a layer axis.

    `in_axes` says for each method how its arguments after the carry are spread over the blocks.
    """
    shared = {
        "variable_axes": {"params": 0},
        "split_rngs": {"params": True, "dropout": True},
        "length": config.blocks,
    }
    methods = {name: {**shared, "in_axes": axes} for name, axes in in_axes.items()}
    return nn.scan(block, methods=methods)


def _norm(config: NetworkConfig, name: str | None = None) -> LayerNorm:
    return LayerNorm(config.dtype, name=name)


def _dense(
    config: NetworkConfig,
    features: int,
    gain: float,
    *,
    use_bias: bool = True,
    dtype: str | None = None,
    name: str | None = None,
) -> Dense:
    return Dense(
        features,
        use_bias=use_bias,
        kernel_init=orthogonal(gain),
        dtype=dtype or config.dtype,
        name=name,
    )
