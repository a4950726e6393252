"""IPPO and MAPPO: agents that neither talk nor wait for each other, with CommFormer's interface.

One MLP with shared weights turns an agent's observation and the one-hot of its index into action
logits (or means). The critic is the same kind of MLP (IPPO: de Witt et al., 2020, arXiv 2011.09533)
or one of all observations concatenated, with a value for each agent, since rewards are per agent
(MAPPO: Yu et al., NeurIPS 2022, arXiv 2103.01955).
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmethods.commformer.config import NetworkConfig
from jaxmethods.commformer.layers import Dense, LayerNorm
from jaxmethods.commformer.network import Encoding
from jaxmethods.models.initializers import orthogonal


class IndependentActors(nn.Module):
    """Critic and actors of a team of N agents with A actions each; no graph is read.

    The decoder's arguments that only a talking team needs (shifted actions, graph, cache) are
    accepted and left alone, so that acting, training and evaluation are CommFormer's.
    """

    config: NetworkConfig
    n_agents: int
    n_actions: int
    """A: discrete actions, or dimensions of a continuous one."""
    continuous: bool = False

    def setup(self) -> None:
        team = self.config.model == "mappo"
        self.actor = Layers(self.config)
        self.critic = Layers(self.config)
        out = orthogonal(0.01)
        self.action_out = Dense(self.n_actions, kernel_init=out)
        values = self.n_agents if team else 1
        self.value_out = Dense(values, kernel_init=orthogonal(1.0))
        if self.continuous:
            self.log_std = self.param(
                "log_std", nn.initializers.ones, (self.n_actions,), jnp.float32
            )

    def __call__(
        self, obs: jax.Array, shifted_actions: jax.Array, graph: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Logits [B, N, A] and values [B, N]; touches every parameter."""
        encoding = self.encode(obs, graph)
        return self.decode(shifted_actions, encoding.rep, graph), encoding.value

    def encode(
        self,
        obs: jax.Array,
        graph: jax.Array,
        deterministic: bool = True,
        gate_noise: jax.Array | None = None,
    ) -> Encoding:
        """Values of observations, and each actor's features.

        Args:
            obs: [B, N, D] of any real or integer type.
            graph: handed on; nobody hears anybody.
            deterministic: not read.
            gate_noise: not read.

        Returns:
            Values [B, N] float32, features [B, N, E], the graph as it came, and no gate.
        """
        del deterministic, gate_noise
        obs = obs.astype(jnp.float32)  # reduced only when they are normalized
        index = jnp.broadcast_to(
            jnp.eye(self.n_agents, dtype=obs.dtype), (*obs.shape[:-1], self.n_agents)
        )
        own = jnp.concatenate([obs, index], axis=-1)
        # [B, N D] of the whole team, or [B, N, D + N]
        seen = obs.reshape(*obs.shape[:-2], -1) if self.config.model == "mappo" else own
        value = self.value_out(self.critic(seen)).astype(jnp.float32)
        value = value if self.config.model == "mappo" else value[..., 0]
        return Encoding(value, self.actor(own), graph, None)

    def decode(self, shifted_actions: jax.Array, rep: jax.Array, graph: jax.Array) -> jax.Array:
        """Logits (or means) [B, N, A] float32."""
        del shifted_actions, graph
        return self.action_out(rep).astype(jnp.float32)

    def decode_step(
        self,
        shifted_action: jax.Array,
        rep: jax.Array,
        graph: jax.Array,
        cache: tuple[()],
        index: jax.Array,
    ) -> tuple[jax.Array, tuple[()]]:
        """Logits (or means) of one agent, for a decoder's interface.

        Args:
            shifted_action: not read: actors are independent.
            rep: [B, E] features of the agent.
            graph: not read either.
            cache: empty.
            index: [] int32 of the agent.

        Returns:
            [B, A] float32, and the empty cache.
        """
        del index
        return self.decode(shifted_action, rep, graph), cache

    def init_cache(self, batch: int) -> tuple[()]:
        """Nothing is remembered between agents."""
        del batch
        return ()


class Layers(nn.Module):
    """[..., D] to [..., E]: `blocks` + 1 layers of width E, normalized."""

    config: NetworkConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config, gain = self.config, orthogonal(math.sqrt(2.0))
        x = LayerNorm(config.dtype, name="norm")(x)
        for layer in range(config.blocks + 1):
            x = Dense(config.embed, kernel_init=gain, dtype=config.dtype, name=f"hidden_{layer}")(x)
            x = LayerNorm(config.dtype, name=f"norm_{layer}")(nn.relu(x))
        return x
