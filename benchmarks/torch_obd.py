"""One outer step of Offline Behavior Distillation in PyTorch, the way one would write it there.

Draws rows, the teacher's actions, weights and a fresh student; runs SGD on the synthetic pairs,
keeping every step's parameters; carries the adjoint back by differentiating each step's gradient
once more (`create_graph`), as the published code does, here without its copies of modules between
devices, its data loader and its unused log-probabilities; then clips and steps. Eager mode,
float32. tests/benchmarks compares it with ours.
"""

# PyTorch is optional:
# pyright: reportMissingImports=false
from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jaxmethods.obd.config import OBDConfig


class Teacher(NamedTuple):
    """Parameter lists as in `sample` and `value`; statistics of the states it was trained on."""

    policy: list[Tensor]
    q1: list[Tensor]
    scale: Tensor
    """[S]: the data's standard deviation over the teacher's."""
    shift: Tensor
    """[S]"""


class Batch(NamedTuple):
    """What the outer loss compares with."""

    states: Tensor
    targets: Tensor
    weights: Tensor
    noise: Tensor


def flatten(policy: Any, device: str) -> list[Tensor]:
    """Our PolicyParams as a flat list: multiplier, offset, then weight and bias of every layer."""
    leaves = [policy.log_std_mult, policy.log_std_off, *(x for pair in policy.layers for x in pair)]
    return [torch.tensor(leaf, device=device) for leaf in leaves]


def sample(params: list[Tensor], states: Tensor, noise: Tensor) -> Tensor:
    """Sampled actions of a tanh-Gaussian policy, [..., A]."""
    multiplier, offset, *layers = params
    mean, raw = mlp(layers, states).chunk(2, dim=-1)
    std = torch.exp(torch.clamp(multiplier * raw + offset, -20.0, 2.0))
    return torch.tanh(mean + std * noise)


def value(layers: list[Tensor], states: Tensor, actions: Tensor) -> Tensor:
    """q(s, a), [...]."""
    return mlp(layers, torch.cat([states, actions], dim=-1))[..., 0]


def mlp(layers: list[Tensor], hidden: Tensor) -> Tensor:
    weights, biases = layers[0::2], layers[1::2]
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        hidden = torch.relu(torch.addmm(bias, hidden, weight))
    return torch.addmm(biases[-1], hidden, weights[-1])


def bc_loss(params: list[Tensor], syn: list[Tensor], noise: Tensor) -> Tensor:
    return torch.mean((sample(params, syn[0], noise) - syn[1]) ** 2)


def outer_loss(params: list[Tensor], batch: Batch) -> Tensor:
    error = (sample(params, batch.states, batch.noise) - batch.targets) ** 2
    return torch.mean(batch.weights[:, None] * error)


def meta_gradient(
    syn: list[Tensor], params: list[Tensor], noise: Tensor, batch: Batch, rate: float
) -> tuple[Tensor, list[Tensor]]:
    """Outer loss and its gradient in the synthetic pairs; noise [T, N, A]."""
    trajectory = [_leaves(params)]
    fixed = [x.detach() for x in syn]
    for eps in noise:
        current = trajectory[-1]
        gradients = torch.autograd.grad(bc_loss(current, fixed, eps), current)
        with torch.no_grad():
            after = [p - rate * g for p, g in zip(current, gradients, strict=True)]
        trajectory.append(_leaves(after))
    last = trajectory.pop()
    loss = outer_loss(last, batch)
    adjoint = torch.autograd.grad(loss, last)
    pairs = _leaves(syn)
    total = [torch.zeros_like(x) for x in pairs]
    for eps in noise.flip(0):
        current = trajectory.pop()
        gradients = torch.autograd.grad(bc_loss(current, pairs, eps), current, create_graph=True)
        along = [-rate * a for a in adjoint]
        curved = torch.autograd.grad(gradients, (*current, *pairs), along)
        adjoint = [a + c for a, c in zip(adjoint, curved, strict=False)]
        total = [t + c for t, c in zip(total, curved[len(current) :], strict=True)]
    return loss.detach(), total


class Distillation:
    """Av-PBC with momentum 0 inside, as `OBDConfig` says."""

    def __init__(
        self, config: OBDConfig, states: Tensor, actions: Tensor, teacher: Teacher
    ) -> None:
        self.config, self.states, self.actions, self.teacher = config, states, actions, teacher
        rows = torch.randperm(len(states), device=states.device)[: config.n_syn]
        self.syn = _leaves([states[rows], actions[rows]])
        self.optimizer = torch.optim.SGD(self.syn, config.outer_lr, config.outer_momentum)

    def step(self) -> Tensor:
        """One outer step; returns its loss."""
        batch, params = self.batch(), self.student()
        shape = (self.config.inner_steps, *self.syn[1].shape)
        noise = torch.randn(shape, device=self.states.device)
        loss, gradient = meta_gradient(self.syn, params, noise, batch, self.config.inner_lr)
        for pairs, along in zip(self.syn, gradient, strict=True):
            pairs.grad = along
        torch.nn.utils.clip_grad_norm_(self.syn, self.config.clip)
        self.optimizer.step()
        return loss

    @torch.no_grad()
    def batch(self) -> Batch:
        # With replacement, which costs less than the permutation that avoids it.
        rows = torch.randint(len(self.states), (self.config.batch,), device=self.states.device)
        states, shape = self.states[rows], (self.config.batch, self.actions.shape[1])
        seen = states * self.teacher.scale + self.teacher.shift
        noise = torch.randn(2, *shape, device=states.device)
        targets = sample(self.teacher.policy, seen, noise[0])
        weights = self.config.beta_w * value(self.teacher.q1, seen, targets)
        return Batch(states, targets, weights, noise[1])

    def student(self) -> list[Tensor]:
        device, hidden = self.states.device, self.config.student.hidden
        sizes = [self.states.shape[1], *[hidden] * (self.config.student.n_layers - 1)]
        sizes.append(2 * self.actions.shape[1])
        params = [torch.ones((), device=device), -torch.ones((), device=device)]
        for inputs, outputs in pairwise(sizes):
            weight = torch.empty(inputs, outputs, device=device)
            params.append(torch.nn.init.orthogonal_(weight, 2**0.5))
            params.append(torch.zeros(outputs, device=device))
        return params


def _leaves(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]
