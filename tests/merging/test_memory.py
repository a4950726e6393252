"""What an adaptation step at full size would take, by the compiler's own count; nothing is run."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jaxmethods.merging.adaptive import adaptation, wemoe
from jaxmethods.merging.config import WEMoEConfig
from jaxmethods.models.clip import vit

VISION = vit.VisionConfig()
TASKS = 8


@pytest.mark.slow
def test_a_step_of_128_images_each_with_weights_of_its_own_fits_into_12_gigabytes():
    config = WEMoEConfig(routing="sample", batch_size=16)

    def batch(key):
        base = vit.init(key, VISION)
        stack = jax.tree.map(lambda leaf: jnp.stack([leaf] * TASKS), base)
        images = adaptation.Unlabeled(
            jnp.zeros((TASKS, 16, 224, 224, 3)), jnp.full(TASKS, 16, jnp.int32)
        )
        heads = adaptation.Heads(jnp.zeros((TASKS, 100, 512)), jnp.ones((TASKS, 100), bool))
        model = wemoe.upcycle(base, stack, config)
        return wemoe.Batch(model, images, heads, jnp.zeros((512, 768)), jnp.zeros(()))

    shapes = jax.eval_shape(batch, jax.random.key(0))
    method = wemoe.adapter(VISION, config)
    state = jax.eval_shape(method.init, jax.random.key(0), shapes)
    analysis = jax.jit(method.step).lower(state, shapes).compile().memory_analysis()
    assert analysis is not None
    frozen = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes.model))
    total = (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        + analysis.temp_size_in_bytes
    )
    assert total < 12e9
    # A gradient of the experts, or what all samples merge to in one layer, would be more than this.
    assert analysis.temp_size_in_bytes < frozen
    assert frozen > 2e9
