"""Attention on CPU beside JAX's own, which accelerators run."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.models import attention
from tests.programs import normal

B, T, S, H, D = 2, 5, 5, 4, 3


def drawn(groups: int = H, keys: int = S) -> tuple[jax.Array, ...]:
    shapes = (B, T, H, D), (B, keys, groups, D), (B, keys, groups, D)
    return tuple(jnp.asarray(normal(seed, *shape)) for seed, shape in enumerate(shapes))


def random_mask(*shape: int) -> jax.Array:
    """Some hidden; the first query of the first row sees nothing."""
    mask = normal(9, *shape) > -0.3
    mask[0, :, 0] = False
    return jnp.asarray(mask)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "all": ({}, {}, H),
    "causal": ({"causal": True}, {"is_causal": True}, H),
    "window": (
        {"causal": True, "window": 2},
        {"is_causal": True, "local_window_size": (1, 0)},
        2,
    ),
    "mask": ({"mask": random_mask(B, 1, T, S)}, {"mask": random_mask(B, 1, T, S)}, 2),
    "mask-of-all-rows": ({"mask": random_mask(1, 1, T, S)}, {"mask": random_mask(1, 1, T, S)}, 1),
    "masks-of-heads": ({"mask": random_mask(B, H, T, S)}, {"mask": random_mask(B, H, T, S)}, 2),
    "mask-and-causal": (
        {"mask": random_mask(B, 1, T, S), "causal": True},
        {"mask": random_mask(B, 1, T, S), "is_causal": True},
        H,
    ),
}


@pytest.mark.parametrize("in_turn", [False, True], ids=["together", "one-by-one"])
@pytest.mark.parametrize("name", CASES)
def test_it_is_what_jax_computes(name: str, in_turn: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "_in_turn", lambda scores: in_turn)
    own, theirs, groups = CASES[name]
    given = drawn(groups)

    def both(function: Any, options: dict[str, Any]) -> Any:
        def loss(given: Any) -> tuple[jax.Array, jax.Array]:
            found = function(*given, **options)
            return jnp.sum(jnp.sin(found)), found

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(given)

    found = both(attention.scaled_attention, own)
    expected = both(jax.nn.dot_product_attention, theirs)
    for mine, their in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, their, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("in_turn", [False, True], ids=["together", "one-by-one"])
def test_no_gradient_of_many_scores_is_kept(in_turn: bool, monkeypatch: pytest.MonkeyPatch):
    """What goes from the forward to the backward pass has no axis of scores."""
    monkeypatch.setattr(attention, "_in_turn", lambda scores: in_turn)
    given = drawn(keys=11)
    pull = jax.eval_shape(lambda *x: jax.vjp(attention.scaled_attention, *x)[1], *given)
    shapes = [leaf.shape for leaf in jax.tree.leaves(pull)]
    assert any(shape[-2:] == (T, 11) for shape in shapes) != in_turn


def test_heads_that_several_devices_may_share_stay_together(monkeypatch: pytest.MonkeyPatch):
    assert jax.device_count() > 1
    assert not attention._in_turn(attention.ROOM + 1)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert attention._in_turn(attention.ROOM + 1)
    assert not attention._in_turn(attention.ROOM)


def test_a_query_that_sees_nothing_gets_the_mean():
    q, k, v = drawn(2)
    hidden = jnp.zeros((1, 1, T, S), bool)
    found = attention.scaled_attention(q, k, v, mask=hidden)
    mean = jnp.broadcast_to(jnp.repeat(v.mean(1), 2, axis=1)[:, None], found.shape)
    np.testing.assert_allclose(found, mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_single(dtype: str):
    given = tuple(x.astype(dtype) for x in drawn())
    found = attention.scaled_attention(*given)
    assert found.dtype == dtype
    wide = attention.scaled_attention(*(x.astype("float32") for x in given))
    np.testing.assert_array_equal(found, wide.astype(dtype))
