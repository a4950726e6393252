"""CommFormer and Predator-Prey in PyTorch: the same work, written as one would write it there.

Environments are simulated as batched tensors, attention is batch-major and has one term per edge
type rather than per edge, acting caches keys and values, Adam is fused. Eager mode, float32.
What is computed is that of `jaxmethods.commformer` with fresh graphs at every training forward
(`training_graph="resample"`), one minibatch and per-agent heads; tests/benchmarks compares both.

Letters: R environments, T steps, B samples, N agents, D observation channels, A actions, E width.
"""

# PyTorch is optional:
# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jaxmethods.commformer.config import NetworkConfig, Preset
from jaxmethods.commformer.graph import edges_per_agent

MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1), (0, 0))
UNAVAILABLE = -1e10


class PredatorPrey:
    """R environments of n predators and one prey in mixed mode, reset automatically."""

    def __init__(self, environments: int, n_predators: int, dim: int, vision: int, device: str):
        self.environments, self.num_agents, self.num_actions = environments, n_predators, len(MOVES)
        self.dim, self.vision, self.device = dim, vision, device
        self.moves = torch.tensor(MOVES, device=device)
        reach = torch.arange(-vision, vision + 1, device=device)
        self.window = torch.cartesian_prod(reach, reach)  # [W, 2]
        self.positions = self._draw(environments)
        self.reached = torch.zeros(environments, n_predators, dtype=torch.bool, device=device)

    def _draw(self, count: int) -> Tensor:
        """Distinct cells of the predators and then the prey, [count, n + 1, 2]."""
        cells = torch.rand(count, self.dim**2, device=self.device).topk(self.num_agents + 1).indices
        return torch.stack((cells // self.dim, cells % self.dim), dim=-1)

    def observe(self) -> Tensor:
        """What the agents see: [R, N, W (dim^2 + 4)] int8."""
        predators, prey = self.positions[:, :-1], self.positions[:, -1:]
        cells = predators[:, :, None] + self.window  # [R, N, W, 2]
        inside = ((cells >= 0) & (cells < self.dim)).all(-1)
        number = cells[..., 0] * self.dim + cells[..., 1]
        number = torch.where(inside, number, self.dim**2 + 1)
        # Windows and grids agree on numbers, so counting equal numbers counts who stands there.
        standing = predators[..., 0] * self.dim + predators[..., 1]
        sought = prey[..., 0] * self.dim + prey[..., 1]
        shape = (*number.shape, self.dim**2 + 4)
        view = torch.zeros(shape, dtype=torch.int8, device=self.device)
        view.scatter_(-1, number[..., None], 1)
        view[..., -2] = number == sought[:, None]
        view[..., -1] = (number[..., None] == standing[:, None, None]).sum(-1)
        return view.flatten(2)

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Moves all agents by action [R, N]: observation, reward [R, N] and done [R]."""
        predators, prey = self.positions[:, :-1], self.positions[:, -1:]
        moved = (predators + self.moves[action]).clamp_(0, self.dim - 1)
        predators = torch.where(self.reached[..., None], predators, moved)
        on_prey = (predators == prey).all(-1)
        self.positions = torch.cat((predators, prey), dim=1)
        self.reached = self.reached | on_prey
        done = self.reached.all(-1)
        ended = done.nonzero().squeeze(-1)
        if len(ended):
            self.positions[ended] = self._draw(len(ended))
            self.reached[ended] = False
        return self.observe(), torch.where(on_prey, 0.0, -0.05), done


class Edges(NamedTuple):
    """What attention reads of a graph [N, N], rows receive."""

    types: Tensor
    """[N, N] float32 of 0 and 1."""
    mask: Tensor
    """[N, N]: the graph with self loops."""
    hears: Tensor
    """[N, N] bool"""


def edges_of(graph: Tensor, config: NetworkConfig) -> Edges:
    """Edge types and mask under the switches of `config`."""
    types = (graph.detach() >= 1).to(graph.dtype)
    eye = torch.eye(len(graph), device=graph.device)
    mask = graph + eye if config.self_loop == "add" else graph * (1 - eye) + eye
    hears = (mask != 0) | eye.bool()
    return Edges(types.T if config.relation_transpose else types, mask, hears)


def k_hot(scores: Tensor, k: int) -> Tensor:
    """The k largest entries of every row, with the gradient of the row softmax."""
    hard = torch.zeros_like(scores).scatter_(-1, scores.topk(k).indices, 1.0)
    soft = scores.softmax(-1)
    return hard + (soft - soft.detach())


class RelationAttention(nn.Module):
    """Attention between agents along the edges of a graph, with a term for the edge's type."""

    def __init__(self, config: NetworkConfig, causal: bool = False):
        super().__init__()
        width = config.embed
        self.heads, self.causal = config.heads, causal
        head_width = width // config.heads
        self.scale = 1 / head_width if config.attention_scale == "double" else head_width**-0.5
        self.in_proj_weight = nn.Parameter(torch.randn(3 * width, width) * 0.02)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.relation_in_proj = normal_linear(width, 2 * width)
        self.out_proj = normal_linear(width, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, query: Tensor, key_value: Tensor, edges: Edges, embedding: Tensor) -> Tensor:
        """[B, N, E] of receivers and of senders -> [B, N, E]."""
        q, k, v = self._project(query, key_value)
        hears = edges.hears.tril() if self.causal else edges.hears
        return self._attend(q, k, v, Edges(edges.types, edges.mask, hears), embedding)

    def step(
        self, query: Tensor, key_value: Tensor, edges: Edges, embedding: Tensor, cache: list[Tensor]
    ) -> Tensor:
        """The next row of causal attention, [B, 1, E]; `cache` holds keys and values so far."""
        q, k, v = self._project(query, key_value)
        if cache:
            k, v = torch.cat((cache[0], k), dim=2), torch.cat((cache[1], v), dim=2)
        cache[:] = k, v
        seen = k.shape[2]
        row = Edges(*(part[seen - 1 : seen, :seen] for part in edges))
        return self._attend(q, k, v, row, embedding)

    def _project(self, query: Tensor, key_value: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values [B, H, N, d]."""
        weight, bias, width = self.in_proj_weight, self.in_proj_bias, query.shape[-1]
        if query is key_value:
            parts = F.linear(query, weight, bias).chunk(3, dim=-1)
        else:
            of_senders = F.linear(key_value, weight[width:], bias[width:]).chunk(2, dim=-1)
            parts = (F.linear(query, weight[:width], bias[:width]), *of_senders)
        return tuple(x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in parts)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, edges: Edges, embedding: Tensor) -> Tensor:
        of_query, of_key = (  # [2, H, 1, d]: one for each edge type
            x.view(2, self.heads, 1, -1) for x in self.relation_in_proj(embedding).chunk(2, dim=-1)
        )
        q, k = q + of_query[0], k + of_key[0]
        query_change, key_change = of_query[1] - of_query[0], of_key[1] - of_key[0]
        changes = (
            q @ key_change.mT + (k @ query_change.mT).mT + query_change @ key_change.mT
        )  # [B, H, N, N]: what type 1 adds to the scores of type 0
        scores = self.scale * (q @ k.mT + edges.types * changes)
        weights = scores.masked_fill(~edges.hears, -torch.inf).softmax(-1) * edges.mask
        return self.out_proj(self.dropout((weights @ v).transpose(1, 2).flatten(2)))


class EncoderBlock(nn.Module):
    def __init__(self, config: NetworkConfig):
        super().__init__()
        width = config.embed
        self.self_attn = RelationAttention(config)
        self.fc1, self.fc2 = normal_linear(width, width), normal_linear(width, width)
        self.attn_layer_norm, self.ff_layer_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, edges: Edges, embedding: Tensor) -> Tensor:
        x = self.attn_layer_norm(x + self.dropout(self.self_attn(x, x, edges, embedding)))
        hidden = self.dropout(F.relu(self.fc1(x)))
        return self.ff_layer_norm(x + self.dropout(self.fc2(hidden)))


class Encoder(nn.Module):
    """Observations [B, N, D] to values [B, N] and representations [B, N, E]."""

    def __init__(self, config: NetworkConfig, channels: int):
        super().__init__()
        width = config.embed
        self.obs_encoder = nn.Sequential(
            nn.LayerNorm(channels), orthogonal_linear(channels, width), nn.GELU()
        )
        self.ln = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.blocks))
        self.head = nn.Sequential(
            orthogonal_linear(width, width),
            nn.GELU(),
            nn.LayerNorm(width),
            orthogonal_linear(width, 1, gain=0.01),
        )

    def forward(self, obs: Tensor, edges: Edges, embedding: Tensor) -> tuple[Tensor, Tensor]:
        x = self.ln(self.obs_encoder(obs.float()))
        for block in self.blocks:
            x = block(x, edges, embedding)
        return self.head(x).squeeze(-1), x


class DecoderBlock(nn.Module):
    def __init__(self, config: NetworkConfig):
        super().__init__()
        width = config.embed
        still = config.model_copy(update={"dropout": 0.0})  # only the encoder has dropout
        self.attn1, self.attn2 = (RelationAttention(still, causal=True) for _ in range(2))
        self.ln1, self.ln2, self.ln3 = (nn.LayerNorm(width) for _ in range(3))
        self.mlp = nn.Sequential(
            orthogonal_linear(width, width), nn.GELU(), orthogonal_linear(width, width, gain=0.01)
        )

    def forward(self, x: Tensor, rep: Tensor, edges: Edges, embedding: Tensor) -> Tensor:
        x = self.ln1(x + self.attn1(x, x, edges, embedding))
        x = self.ln2(rep + self.attn2(rep, x, edges, embedding))
        return self.ln3(x + self.mlp(x))

    def step(
        self, x: Tensor, rep: Tensor, edges: Edges, embedding: Tensor, caches: tuple[list, list]
    ) -> Tensor:
        x = self.ln1(x + self.attn1.step(x, x, edges, embedding, caches[0]))
        x = self.ln2(rep + self.attn2.step(rep, x, edges, embedding, caches[1]))
        return self.ln3(x + self.mlp(x))


class AgentHeads(nn.Module):
    """One MLP for each agent, their weights stacked: norm, linear, GELU, norm, linear."""

    def __init__(self, agents: int, width: int, actions: int):
        super().__init__()
        heads = [
            nn.ModuleList(
                (
                    nn.LayerNorm(width),
                    orthogonal_linear(width, width),
                    nn.LayerNorm(width),
                    orthogonal_linear(width, actions, gain=0.01),
                )
            )
            for _ in range(agents)
        ]
        for place, layers in zip((0, 1, 3, 4), zip(*heads, strict=True), strict=True):
            for part in ("weight", "bias"):
                stacked = torch.stack([getattr(layer, part).detach() for layer in layers])
                self.register_parameter(f"{part}_{place}", nn.Parameter(stacked))

    def forward(self, x: Tensor, agents: slice = slice(None)) -> Tensor:
        """Features [B, N, E] of these agents to logits [B, N, A]."""
        own: dict[str, Any] = {name: weight[agents] for name, weight in self.named_parameters()}
        x = F.layer_norm(x, x.shape[-1:]) * own["weight_0"] + own["bias_0"]
        x = F.gelu(torch.einsum("bni,noi->bno", x, own["weight_1"]) + own["bias_1"])
        x = F.layer_norm(x, x.shape[-1:]) * own["weight_3"] + own["bias_3"]
        return torch.einsum("bni,noi->bno", x, own["weight_4"]) + own["bias_4"]


class Decoder(nn.Module):
    """Shifted actions [B, N, A + 1] and representations to logits [B, N, A]."""

    def __init__(self, config: NetworkConfig, agents: int, actions: int):
        super().__init__()
        width = config.embed
        self.action_encoder = nn.Sequential(
            orthogonal_linear(actions + 1, width, bias=False), nn.GELU()
        )
        self.ln = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.blocks))
        self.mlp = AgentHeads(agents, width, actions)

    def forward(self, shifted: Tensor, rep: Tensor, edges: Edges, embedding: Tensor) -> Tensor:
        x = self.ln(self.action_encoder(shifted))
        for block in self.blocks:
            x = block(x, rep, edges, embedding)
        return self.mlp(x)


class CommFormer(nn.Module):
    """Critic, autoregressive actor and edge logits of a team."""

    def __init__(self, config: NetworkConfig, channels: int, agents: int, actions: int):
        super().__init__()
        self.config, self.agents, self.actions = config, agents, actions
        self.edges = nn.Parameter(torch.ones(agents, agents))
        self.edges_embed = nn.Embedding(2, config.embed)
        self.encoder = Encoder(config, channels)
        self.decoder = Decoder(config, agents, actions)

    def encode(self, obs: Tensor, graph: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder(obs, edges_of(graph, self.config), self.edges_embed.weight)

    def shift(self, action: Tensor) -> Tensor:
        """[B, N] to the decoder's input [B, N, A + 1]."""
        previous = F.pad(action[:, :-1] + 1, (1, 0))
        return F.one_hot(previous, self.actions + 1).float()

    def logits(self, action: Tensor, rep: Tensor, graph: Tensor) -> Tensor:
        edges = edges_of(graph, self.config)
        return self.decoder(self.shift(action), rep, edges, self.edges_embed.weight)

    def evaluate(
        self, obs: Tensor, action: Tensor, mask: Tensor, graph: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities, entropies and values of stored actions, [B, N] each."""
        value, rep = self.encode(obs, graph)
        log_probs = self.logits(action, rep, graph).masked_fill(~mask, UNAVAILABLE).log_softmax(-1)
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        return log_probs.gather(-1, action[..., None]).squeeze(-1), entropy, value

    @torch.no_grad()
    def act(
        self, obs: Tensor, mask: Tensor, graph: Tensor, greedy: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Actions, log-probabilities and values, [B, N] each; agents act in order."""
        value, rep = self.encode(obs, graph)
        edges, embedding = edges_of(graph, self.config), self.edges_embed.weight
        decoder: Any = self.decoder
        actions, log_probs = [], []
        caches = [([], []) for _ in decoder.blocks]
        told = torch.zeros(len(obs), 1, dtype=torch.long, device=obs.device)
        for agent in range(self.agents):
            own = slice(agent, agent + 1)
            shifted = F.one_hot(told, self.actions + 1).float()
            x = decoder.ln(decoder.action_encoder(shifted))
            for block, cache in zip(decoder.blocks, caches, strict=True):
                x = block.step(x, rep[:, own], edges, embedding, cache)
            logits = decoder.mlp(x, own).masked_fill(~mask[:, own], UNAVAILABLE)[:, 0]
            action = logits.argmax(-1) if greedy else logits.softmax(-1).multinomial(1).squeeze(-1)
            actions.append(action)
            log_probs.append(logits.log_softmax(-1).gather(-1, action[:, None]).squeeze(-1))
            told = action[:, None] + 1
        return torch.stack(actions, 1), torch.stack(log_probs, 1), value


class ValueNorm:
    """Exponential moving moments of the returns, debiased."""

    def __init__(self, device: str):
        self.moments = torch.zeros(3, device=device)

    def update(self, returns: Tensor) -> None:
        new = torch.stack((returns.mean(), returns.square().mean(), returns.new_ones(())))
        self.moments.lerp_(new, 1e-5)

    def mean_and_std(self) -> tuple[Tensor, Tensor]:
        mean, square = self.moments[:2] / self.moments[2].clamp(min=1e-5)
        return mean, (square - mean**2).clamp(min=1e-2).sqrt()


class Experience(NamedTuple):
    """One roll-out of M = R T samples, [M, N, ...] each."""

    obs: Tensor
    mask: Tensor
    action: Tensor
    log_prob: Tensor
    value: Tensor
    advantage: Tensor
    returns: Tensor


class Training:
    """The loop: T steps in every environment, then alternating epochs of PPO."""

    def __init__(self, env: PredatorPrey, preset: Preset):
        self.env, (config, self.graph, self.ppo) = env, preset
        if self.graph.training_graph != "resample" or self.ppo.minibatches != 1:
            raise ValueError("preset must resample graphs and have one minibatch")
        self.obs = env.observe()
        self.network = CommFormer(config, self.obs.shape[-1], env.num_agents, env.num_actions)
        self.network.to(env.device)
        self.lower = [p for name, p in self.network.named_parameters() if name != "edges"]
        self.optimizer = torch.optim.Adam(
            self.lower, lr=self.ppo.learning_rate, eps=self.ppo.adam_epsilon, fused=True
        )
        self.edge_optimizer = torch.optim.Adam([self.network.edges], lr=self.graph.learning_rate)
        self.value_norm = ValueNorm(env.device)
        self.k = edges_per_agent(env.num_agents, self.graph.sparsity)
        self.updates = 0

    def update(self) -> None:
        """One update of both levels, roll-out included."""
        experience = self.collect()
        for epoch in range(1, self.ppo.epochs + 1):
            self.epoch(experience, upper=epoch % self.graph.upper_every == 0)
        self.updates += 1

    @torch.no_grad()
    def collect(self) -> Experience:
        """T steps on the exact graph, with advantages by GAE."""
        ppo, network = self.ppo, self.network.eval()
        graph = k_hot(network.edges, self.k)
        shape = (ppo.rollout, *self.obs.shape[:2])
        mask = torch.ones(*shape[1:], network.actions, dtype=torch.bool, device=self.obs.device)
        obs = self.obs.new_empty(*shape, self.obs.shape[-1])
        action = torch.empty(shape, dtype=torch.long, device=obs.device)
        log_prob, value, reward = torch.empty(3, *shape, device=obs.device)
        going_on = torch.empty(*shape[:2], 1, device=obs.device)
        for t in range(ppo.rollout):
            obs[t] = self.obs
            action[t], log_prob[t], value[t] = network.act(self.obs, mask, graph)
            self.obs, reward[t], done = self.env.step(action[t])
            going_on[t] = ~done[:, None]
        bootstrap, _ = network.encode(self.obs, graph)
        advantage, returns = self.gae(reward, value, bootstrap, going_on)
        advantage = (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-5)
        masks = mask.expand(ppo.rollout, *mask.shape)
        parts = (obs, masks, action, log_prob, value, advantage, returns)
        return Experience(*(x.flatten(0, 1) for x in parts))

    def gae(
        self, reward: Tensor, value: Tensor, bootstrap: Tensor, going_on: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Advantages and returns [T, R, N] of values in normalized units."""
        mean, std = self.value_norm.mean_and_std()
        value = torch.cat((value, bootstrap[None])) * std + mean
        discounts = self.ppo.discount * going_on
        delta = reward + discounts * value[1:] - value[:-1]
        advantage, last = torch.empty_like(delta), torch.zeros_like(delta[0])
        for t in reversed(range(len(delta))):
            last = advantage[t] = delta[t] + self.ppo.gae_lambda * discounts[t] * last
        return advantage, advantage + value[:-1]

    def epoch(self, experience: Experience, upper: bool = False) -> None:
        """One gradient step on all samples, of the edge logits or of the rest."""
        loss = self.loss(experience)
        parameters = [self.network.edges] if upper else self.lower
        optimizer = self.edge_optimizer if upper else self.optimizer
        optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=parameters)
        if not upper:
            nn.utils.clip_grad_norm_(parameters, self.ppo.max_grad_norm)
        optimizer.step()

    def loss(self, experience: Experience) -> Tensor:
        """The PPO loss with dropout on a fresh training graph."""
        ppo, network = self.ppo, self.network.train()
        graph = network.edges
        if self.updates > self.graph.warmup_updates:
            gumbel = -torch.empty_like(graph).exponential_().log()
            graph = k_hot(graph + gumbel, self.k)
        log_prob, entropy, value = network.evaluate(
            experience.obs, experience.action, experience.mask, graph
        )
        self.value_norm.update(experience.returns)
        mean, std = self.value_norm.mean_and_std()
        target = (experience.returns - mean) / std
        ratio = (log_prob - experience.log_prob).exp()
        clipped = ratio.clamp(1 - ppo.clip, 1 + ppo.clip)
        policy = -torch.minimum(ratio * experience.advantage, clipped * experience.advantage).mean()
        near = experience.value + (value - experience.value).clamp(-ppo.clip, ppo.clip)
        errors = (
            F.huber_loss(v, target, reduction="none", delta=ppo.huber_delta) for v in (value, near)
        )
        value_loss = torch.maximum(*errors).mean()
        return (
            policy - ppo.entropy_coefficient * entropy.mean() + ppo.value_coefficient * value_loss
        )


def orthogonal_linear(
    inputs: int, outputs: int, bias: bool = True, gain: float = 2**0.5
) -> nn.Linear:
    """A linear layer with orthogonal weight and zero bias."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.orthogonal_(layer.weight, gain)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def normal_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer with weight of standard deviation 0.02 and zero bias."""
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


def published_state(network: CommFormer) -> dict[str, np.ndarray]:
    """The parameters under the published code's names, as `params_from_torch` reads them.

    The published code keeps a module for each agent's head, and its GPT-2 style layers (in, out).
    """
    transposed = ("relation_in_proj.weight", "out_proj.weight", "fc1.weight", "fc2.weight")
    state = {}
    for name, tensor in network.state_dict().items():
        value = tensor.cpu().numpy()
        if name.startswith("decoder.mlp."):
            part, place = name.removeprefix("decoder.mlp.").split("_")
            for agent, own in enumerate(value):
                state[f"decoder.mlp.{agent}.{place}.{part}"] = own
        else:
            state[name] = value.T if name.endswith(transposed) else value
    return state
