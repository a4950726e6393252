"""VQ-CD's planner in PyTorch, the way one would write it there: training step and guided plans.

The U-Net as modules with channels first, as the predecessor's code has it; Adam; the average of the
weights by `torch._foreach` operations; two forward passes for guidance. The data lie on the device
and windows are gathered by index, so that no loader is timed. Eager mode, float32.
tests/benchmarks compares its numbers with ours.
"""

# PyTorch is optional:
# pyright: reportMissingImports=false
from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from jaxmethods.models.temporal_unet import TemporalNetworkConfig
from jaxmethods.vqcd.config import PlannerConfig
from jaxmethods.vqcd.diffusion import cosine_schedule, strided


class ConvBlock(nn.Module):
    """Convolution, norm, Mish."""

    def __init__(self, inputs: int, outputs: int, config: TemporalNetworkConfig):
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, config.kernel, padding=config.kernel // 2)
        self.gn = nn.GroupNorm(config.groups, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return functional.mish(self.gn(self.conv(x)))


class ResidualBlock(nn.Module):
    """Two blocks with the condition between them, and a skip."""

    def __init__(self, inputs: int, outputs: int, config: TemporalNetworkConfig):
        super().__init__()
        self.block0 = ConvBlock(inputs, outputs, config)
        self.block1 = ConvBlock(outputs, outputs, config)
        self.cond_proj = nn.Linear(2 * config.dim, outputs)
        self.skip = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        y = self.block0(x) + self.cond_proj(functional.mish(condition))[:, :, None]
        return self.block1(y) + self.skip(x)


class TwoBlocks(nn.Module):
    """A level, or the middle."""

    def __init__(self, inputs: int, outputs: int, config: TemporalNetworkConfig):
        super().__init__()
        self.res0 = ResidualBlock(inputs, outputs, config)
        self.res1 = ResidualBlock(outputs, outputs, config)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.res1(self.res0(x, condition), condition)


class Perceptron(nn.Module):
    """Dense layers with an activation between them."""

    def __init__(self, *sizes: int, activation: nn.Module | None = None):
        super().__init__()
        self.names = []
        for place, (inputs, outputs) in enumerate(pairwise(sizes)):
            self.names.append(f"dense{place}")
            self.add_module(f"dense{place}", nn.Linear(inputs, outputs))
        self.activation = activation or nn.Mish()

    def forward(self, x: Tensor) -> Tensor:
        for place, name in enumerate(self.names):
            x = getattr(self, name)(self.activation(x) if place else x)
        return x


class TemporalUnet(nn.Module):
    """The network, with the names of the golden files."""

    def __init__(self, config: TemporalNetworkConfig):
        super().__init__()
        dim, widths = config.dim, config.widths
        self.dim, self.levels = dim, len(widths)
        self.time_embed = Perceptron(dim, 4 * dim, dim)
        self.return_embed = Perceptron(1, dim, 4 * dim, dim)
        before = config.channels
        for level, width in enumerate(widths):
            block = TwoBlocks(before, width, config)
            if level < len(widths) - 1:
                block.downsample = nn.Conv1d(width, width, 3, 2, 1)
            self.add_module(f"down{level}", block)
            before = width
        self.mid = TwoBlocks(before, before, config)
        for up, level in enumerate(range(len(widths) - 1, 0, -1)):
            block = TwoBlocks(2 * widths[level], widths[level - 1], config)
            block.upsample = nn.ConvTranspose1d(widths[level - 1], widths[level - 1], 4, 2, 1)
            self.add_module(f"up{up}", block)
        self.final = nn.ModuleDict(
            {
                "block": ConvBlock(widths[0], dim, config),
                "out": nn.Conv1d(dim, config.channels, 1),
            }
        )
        half = (dim + 1) // 2
        self.register_buffer(
            "frequencies",
            torch.exp(torch.arange(half) * (-math.log(10000.0) / half)),
            persistent=False,
        )

    def forward(self, x: Tensor, step: Tensor, returns: Tensor, keep: Tensor) -> Tensor:
        """x [B, T, C], step [B], returns and keep [B, 1] -> noise [B, T, C]."""
        angles = step[:, None] * self.frequencies
        seen = torch.cat([angles.sin(), angles.cos()], -1)[:, : self.dim]
        condition = torch.cat([self.time_embed(seen), keep * self.return_embed(returns)], -1)
        x, skips = x.transpose(1, 2), []
        for level in range(self.levels):
            block = getattr(self, f"down{level}")
            x = block(x, condition)
            skips.append(x)
            if level < self.levels - 1:
                x = block.downsample(x)
        x = self.mid(x, condition)
        for up in range(self.levels - 1):
            block = getattr(self, f"up{up}")
            x = block.upsample(block(torch.cat([x, skips.pop()], 1), condition))
        return self.final["out"](self.final["block"](x)).transpose(1, 2)


class Planner(nn.Module):
    """Network and inverse model of one task."""

    def __init__(self, config: PlannerConfig):
        super().__init__()
        self.network = TemporalUnet(config.network)
        hidden, channels = config.inverse_hidden, config.network.channels
        self.inverse = Perceptron(
            2 * channels, hidden, hidden, config.action_channels, activation=nn.ReLU()
        )


class Training:
    """One task's training; owners mask the weights and Adam is dense, as the paper has it."""

    def __init__(self, config: PlannerConfig, device: str, rows: int):
        self.config, self.device = config, device
        self.model = Planner(config).to(device)
        self.average = Planner(config).to(device)
        self.average.load_state_dict(self.model.state_dict())
        self.optimizer = torch.optim.Adam(self.model.parameters(), config.lr)
        channels, horizon = config.network.channels, config.network.horizon
        self.states = torch.randn(rows, channels, device=device)
        self.actions = torch.randn(rows, config.action_channels, device=device)
        self.returns = torch.rand(rows, device=device)
        self.windows = torch.arange(horizon, device=device)
        schedule = cosine_schedule(config.diffusion.steps)
        self.signal, self.sigma = (
            torch.tensor(table, device=device) for table in (schedule.signal, schedule.sigma)
        )
        self.masks = {
            name: (torch.rand_like(leaf) < 1.0 / config.tasks).float()
            for name, leaf in self.model.named_parameters()
            if leaf.ndim > 1 and name.startswith("network.")
        }
        self.done = 0

    def step(self) -> None:
        """Windows, loss, gradient, update, average."""
        config = self.config
        batch = config.batch
        starts = torch.randint(
            0, len(self.states) - len(self.windows), (batch,), device=self.device
        )
        rows = starts[:, None] + self.windows
        states, actions, returns = self.states[rows], self.actions[rows], self.returns[starts]
        weights = dict(self.model.named_parameters())
        masked = {
            name: leaf * self.masks[name] if name in self.masks else leaf
            for name, leaf in weights.items()
        }
        k = torch.randint(0, config.diffusion.steps, (batch,), device=self.device)
        noise = torch.randn_like(states)
        x = self.signal[k][:, None, None] * states + self.sigma[k][:, None, None] * noise
        x[:, 0] = states[:, 0]
        keep = (torch.rand(batch, 1, device=self.device) >= config.diffusion.drop).float()
        network = {n.removeprefix("network."): w for n, w in masked.items() if n[0] == "n"}
        predicted = torch.func.functional_call(
            self.model.network, network, (x, k, returns[:, None], keep)
        )
        error = (predicted - noise).square()
        error = torch.cat([torch.zeros_like(error[:, :1]), error[:, 1:]], 1)
        found = self.model.inverse(torch.cat([states[:, :-1], states[:, 1:]], -1))
        loss = error.mean() + functional.mse_loss(found, actions[:, :-1])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.done % config.ema_every == 0:
            decay = 0.0 if self.done < config.ema_start else config.ema_decay
            with torch.no_grad():
                average, own = list(self.average.parameters()), list(self.model.parameters())
                torch._foreach_lerp_(average, own, 1.0 - decay)
        self.done += 1


class Planning:
    """Guided plans with the strided sampler."""

    def __init__(self, config: PlannerConfig, device: str, episodes: int, bound: float = 3.0):
        self.config, self.device, self.bound = config, device, bound
        self.model = Planner(config).to(device)
        tables = strided(config.diffusion.steps, config.diffusion.stride, config.diffusion.eta)
        self.steps = tables.steps.tolist()
        self.alpha, self.variance, self.noise = (
            table.tolist() for table in (tables.alpha, tables.variance, tables.noise_coef)
        )
        self.present = torch.rand(episodes, config.network.channels, device=device)
        self.target = torch.full((episodes, 1), 0.8, device=device)

    @torch.no_grad()
    def act(self) -> Tensor:
        """A plan for every episode and its first aligned action."""
        network, episodes = self.model.network, len(self.present)
        keep, drop = torch.ones_like(self.target), torch.zeros_like(self.target)
        shape = (episodes, self.config.network.horizon, self.config.network.channels)
        x = torch.randn(shape, device=self.device)
        x[:, 0] = self.present
        weight = self.config.diffusion.guidance
        for place in reversed(range(len(self.steps))):
            k = torch.full((episodes,), self.steps[place], device=self.device)
            with_return = network(x, k, self.target, keep)
            without = network(x, k, self.target, drop)
            noise = without + weight * (with_return - without)
            x = (x - self.noise[place] * noise) / self.alpha[place]
            if place:
                x = x + math.sqrt(self.variance[place]) * torch.randn_like(x)
            x = x.clamp(-self.bound, self.bound)
            x[:, 0] = self.present
        return self.model.inverse(torch.cat([x[:, 0], x[:, 1]], -1))
