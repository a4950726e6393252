"""The peers of `interpret.py` at the same work: each makes a call that returns one number.

PyHessian 0.1 calls `torch.eig`, which PyTorch has removed: its own replacement is put in its place.
Its trace stops on two close means by design; a tolerance of 0 makes it take all probes.
"""

# The peers are optional:
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.interpret import trees
from jaxmethods.interpret.problem import Problem

Call = Callable[[], Any]


def model_of(problem: Problem) -> tuple[Any, Any, Any, Any]:
    """The network as a torch module, its loss, inputs and labels."""
    import torch

    layers: list[Any] = []
    for w, b in problem.params:
        layer = torch.nn.Linear(*w.shape)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(np.asarray(w).T.copy()))
            layer.bias.copy_(torch.tensor(np.asarray(b)))
        layers += [layer, torch.nn.Tanh()]
    x = torch.tensor(np.asarray(problem.data.inputs))
    y = torch.tensor(np.asarray(problem.data.targets, np.int64))
    return torch.nn.Sequential(*layers[:-1]), torch.nn.CrossEntropyLoss(), x, y


def _pyhessian(problem: Problem) -> Any:
    import torch
    from pyhessian import hessian

    if not hasattr(torch, "_eig_of_old"):
        torch._eig_of_old = True

        def eig(matrix: Any, eigenvectors: bool = False) -> Any:
            values, vectors = torch.linalg.eig(matrix)
            return torch.view_as_real(values), vectors.real

        torch.eig = eig
    model, loss, x, y = model_of(problem)
    return hessian(model, loss, data=(x, y), cuda=False)


def pyhessian_slq(problem: Problem, probes: int, steps: int) -> Call:
    own, size = _pyhessian(problem), trees.size(problem.floats)

    def call() -> float:
        values, weights = own.density(iter=steps, n_v=probes)
        return size * float(np.mean(np.sum(np.asarray(weights) * np.asarray(values) ** 2, axis=1)))

    return call


def pyhessian_trace(problem: Problem, count: int) -> Call:
    own = _pyhessian(problem)
    return lambda: float(np.mean(own.trace(maxIter=count, tol=0)))


def pyhessian_top(problem: Problem, k: int) -> Call:
    own = _pyhessian(problem)
    return lambda: own.eigenvalues(maxIter=100, tol=1e-3, top_n=k)[0][0]


def _eigenthings(problem: Problem) -> Any:
    from hessian_eigenthings.loss_fns import supervised_loss
    from hessian_eigenthings.operators.hessian import HessianOperator

    model, loss, x, y = model_of(problem)
    return HessianOperator(model, [(x, y)], supervised_loss(loss))


def eigenthings_slq(problem: Problem, probes: int, steps: int) -> Call:
    from hessian_eigenthings.algorithms.spectral_density import spectral_density

    own = _eigenthings(problem)

    def call() -> float:
        # A coarse grid: drawing the density is no part of the work.
        found = spectral_density(
            own, num_runs=probes, lanczos_steps=steps, num_grid_points=16, seed=0
        )
        return own.size * float((found.raw_weights * found.raw_eigenvalues**2).sum(1).mean())

    return call


def eigenthings_trace(problem: Problem, count: int) -> Call:
    from hessian_eigenthings.algorithms.trace import trace

    own = _eigenthings(problem)
    return lambda: float(trace(own, num_matvecs=count, method="hutchinson", seed=0).estimate)


def eigenthings_top(problem: Problem, k: int, steps: int) -> Call:
    from hessian_eigenthings.algorithms.lanczos import lanczos

    own = _eigenthings(problem)
    return lambda: float(lanczos(own, k=k, max_iter=steps).eigenvalues.max())


def _curvlinops(problem: Problem) -> Any:
    from curvlinops import HessianLinearOperator

    model, loss, x, y = model_of(problem)
    params = [p for p in model.parameters() if p.requires_grad]
    return HessianLinearOperator(model, loss, params, [(x, y)], check_deterministic=False)


def curvlinops_slq(problem: Problem, probes: int, steps: int) -> Call:
    from curvlinops.papyan2020traces.spectrum import fast_lanczos

    own, size = _curvlinops(problem), trees.size(problem.floats)

    def call() -> float:
        total = 0.0
        for _ in range(probes):
            values, vectors = fast_lanczos(own, steps)
            total += float((vectors[0] ** 2 * values**2).sum()) / probes
        return size * total

    return call


def curvlinops_trace(problem: Problem, count: int) -> Call:
    from curvlinops import hutchinson_trace

    own = _curvlinops(problem)
    return lambda: float(hutchinson_trace(own, num_matvecs=count))


def laplax_trace(problem: Problem, network: Any, count: int, together: int) -> Call:
    from laplax.curv.hessian import create_hessian_mv

    data = {"input": problem.data.inputs, "target": problem.data.targets}

    def model(input: Any, params: Any) -> Any:
        return network(params, input[None])[0]

    def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return -jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1))

    @jax.jit
    def trace(params: Any, key: jax.Array) -> jax.Array:
        product = create_hessian_mv(model, params, data, loss, num_total_samples=1)

        def sample(key: jax.Array) -> jax.Array:
            probe = trees.random_like(key, params)
            return trees.vdot(probe, product(probe))

        keys = jax.random.split(key, count)
        return jnp.mean(jax.lax.map(sample, keys, batch_size=together if together > 1 else None))

    return lambda: float(trace(problem.params, jax.random.key(0)))


def torch_ntk(problem: Problem) -> Call:
    """The recipe of PyTorch's tutorial: Jacobians by `jacrev` and `vmap`, contracted."""
    import torch

    model, _, x, _ = model_of(problem)
    params = {name: leaf.detach() for name, leaf in model.named_parameters()}

    def one(params: Any, example: Any) -> Any:
        return torch.func.functional_call(model, params, (example[None],))[0]

    def call() -> float:
        jacobians = torch.func.vmap(torch.func.jacrev(one), (None, 0))(params, x)
        flat = [leaf.flatten(2) for leaf in jacobians.values()]
        kernel = torch.stack([torch.einsum("ncp,mcp->nm", leaf, leaf) for leaf in flat]).sum(0)
        return float(torch.trace(kernel)) / problem.params[-1][1].shape[0]

    return call


def torch_shadows(problem: Problem, models: int, steps: int) -> Call:
    """One model after the other, by gradient descent on half of the examples."""
    import torch

    _, criterion, x, y = model_of(problem)
    sizes = [w.shape for w, _ in problem.params]
    generator = torch.Generator().manual_seed(0)

    def call() -> float:
        losses = []
        for _ in range(models):
            params = [
                torch.randn(shape, generator=generator).div(shape[0] ** 0.5)
                for rows, columns in sizes
                for shape in ((rows, columns), (columns,))
            ]
            for leaf in params:
                leaf.requires_grad_(True)
            member = torch.rand(len(x), generator=generator) < 0.5
            inputs, labels = x[member], y[member]
            optimizer = torch.optim.SGD(params, 0.5)
            for _ in range(steps):
                optimizer.zero_grad()
                hidden = inputs
                for place in range(0, len(params), 2):
                    hidden = hidden @ params[place] + params[place + 1]
                    hidden = torch.tanh(hidden) if place < len(params) - 2 else hidden
                loss = criterion(hidden, labels)
                loss.backward()
                optimizer.step()
            losses.append(float(loss.detach()))
        return float(np.mean(losses))

    return call
