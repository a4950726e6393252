"""The hypergradient of benchmarks/bilevel.py in PyTorch, the way one would write it there.

Both ways run SGD on the synthetic pairs, keep the parameters of every step, and carry the adjoint
back by hand: nu = - rate * lambda, lambda += H nu, eta += M nu. `by_reverse` takes the two products
by differentiating a gradient's graph once more (create_graph), as published code does; `by_mixed`
by torch.func's forward over reverse. Eager mode, float32. tests/benchmarks compares them with ours.
"""

# PyTorch is optional:
# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class Problem(NamedTuple):
    """`benchmarks.bilevel.Inputs` as tensors; parameters are a flat list."""

    pairs: list[Tensor]
    params: list[Tensor]
    """Scale and offset of the log standard deviations, then weight and bias of every layer."""
    noise: Tensor
    judges: list[Tensor]
    judging_noise: Tensor


def from_numpy(inputs: Any, device: str) -> Problem:
    """Copies the arrays of a JAX problem."""
    params = [inputs.params["log_std_scale"], inputs.params["log_std_offset"]]
    for layer in inputs.params["layers"]:
        params.extend(layer)
    trees = (list(inputs.pairs), params, inputs.noise, list(inputs.judges), inputs.judging_noise)
    return Problem(*pytree.tree_map(lambda x: torch.tensor(x, device=device), trees))


def imitation(params: list[Tensor], pairs: list[Tensor], noise: Tensor) -> Tensor:
    """[] mean squared error of sampled actions."""
    scale, offset, *layers = params
    hidden, actions = pairs
    weights, biases = layers[0::2], layers[1::2]
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        hidden = torch.relu(torch.addmm(bias, hidden, weight))
    mean, log_std = torch.addmm(biases[-1], hidden, weights[-1]).chunk(2, dim=-1)
    std = torch.exp(torch.clamp(scale * log_std + offset, -20.0, 2.0))
    return torch.mean((torch.tanh(mean + std * noise) - actions) ** 2)


def by_reverse(problem: Problem, rate: float) -> tuple[Tensor, list[Tensor]]:
    """Outer loss and gradient, reverse over reverse."""
    trajectory = [_leaves(problem.params)]
    for noise in problem.noise:
        params = trajectory[-1]
        gradients = torch.autograd.grad(imitation(params, problem.pairs, noise), params)
        with torch.no_grad():
            after = [p - rate * g for p, g in zip(params, gradients, strict=True)]
        trajectory.append(_leaves(after))
    params = trajectory.pop()
    loss = imitation(params, problem.judges, problem.judging_noise)
    adjoint = torch.autograd.grad(loss, params)
    pairs = _leaves(problem.pairs)
    total = [torch.zeros_like(x) for x in pairs]
    for noise in reversed(problem.noise):
        params = trajectory.pop()
        inner = imitation(params, pairs, noise)
        gradients = torch.autograd.grad(inner, params, create_graph=True)
        along = [-rate * a for a in adjoint]
        curved = torch.autograd.grad(gradients, (*params, *pairs), along)
        adjoint = [a + c for a, c in zip(adjoint, curved, strict=False)]
        total = [t + c for t, c in zip(total, curved[len(params) :], strict=True)]
    return loss.detach(), total


def by_mixed(problem: Problem, rate: float) -> tuple[Tensor, list[Tensor]]:
    """Outer loss and gradient, forward over reverse."""
    gradient = torch.func.grad(imitation)
    gradients = torch.func.grad(imitation, argnums=(0, 1))
    trajectory, params = [], problem.params
    for noise in problem.noise:
        trajectory.append(params)
        direct = gradient(params, problem.pairs, noise)
        params = [p - rate * g for p, g in zip(params, direct, strict=True)]
    adjoint, loss = torch.func.grad_and_value(imitation)(
        params, problem.judges, problem.judging_noise
    )
    total = [torch.zeros_like(x) for x in problem.pairs]
    for params, noise in zip(reversed(trajectory), reversed(problem.noise), strict=True):
        along = [-rate * a for a in adjoint]
        products = torch.func.jvp(
            lambda params, noise=noise: gradients(params, problem.pairs, noise), (params,), (along,)
        )
        curved, mixed = products[1]
        adjoint = [a + c for a, c in zip(adjoint, curved, strict=True)]
        total = [t + m for t, m in zip(total, mixed, strict=True)]
    return loss, total


def _leaves(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.detach().requires_grad_() for tensor in tensors]
