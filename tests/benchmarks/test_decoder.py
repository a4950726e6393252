"""Both sides of the decoders' benchmark do the same work: equal tokens and logits."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import decoder as bench
from benchmarks.harness import Settings

pytestmark = pytest.mark.slow  # of benchmarks, not of the library

SMALL = {"vocab_size": 48, "width": 32, "mlp_width": 40, "layers": 2, "heads": 4, "kv_heads": 2}
SMALL |= {"head_dim": 8, "rotary_dim": 8}
SIZES = bench.Sizes(prompt=4, new=6, prefill=8, batches=(2,))


@pytest.mark.parametrize("config", [bench.LLAMA, bench.QWEN], ids=lambda config: config.family)
def test_equal_work(config):
    pytest.importorskip("transformers")
    model = bench.random_model(config.model_copy(update=SMALL), jnp.float32)
    ids = bench.random_ids(model.config, 2, 4)
    ours = bench.continued(model.params, ids, config=model.config, new=6)
    np.testing.assert_array_equal(ours.tokens, bench.torch_decoding(model, ids, 6)().numpy())
    logits, _ = bench.last_logits(model.params, ids, config=model.config)
    np.testing.assert_allclose(logits, bench.torch_prefill(model, ids)().numpy(), atol=1e-5)


def test_products_are_those_of_the_linear_layers():
    pytest.importorskip("transformers")
    model = bench.random_model(bench.LLAMA.model_copy(update=SMALL), jnp.float32)
    rows = {size: jnp.full((2, size), 0.5) for size in (32, 40)}
    theirs = bench.torch_products(model, rows)()
    ours = [rows[kernel.shape[0]] @ kernel for kernel in bench.kernels(model)]
    # Layers name their matrices in different orders.
    sums = [sorted(float(jnp.abs(jnp.asarray(x)).sum()) for x in side) for side in (ours, theirs)]
    np.testing.assert_allclose(*sums, rtol=1e-5)


@pytest.mark.slow
def test_rows_of_a_small_model(monkeypatch):
    monkeypatch.setattr(bench, "COPIED", 2**12)
    monkeypatch.setattr(bench, "transformers_model", lambda config, params: None)
    config = bench.LLAMA.model_copy(update=SMALL)
    rows = list(bench.family(Settings(3, 0.1, 1), config, SIZES, jnp.bfloat16))
    assert [row.name for row in rows] == ["decoder/decode", "decoder/products", "decoder/prefill"]
    assert [row.work for row in rows] == [2 * 6, 2, 2 * 8]
    assert "GB/s" in rows[0].note
    assert rows[1].note.endswith("% of a token of decoding")
    assert "GFLOP/s" in rows[2].note


def test_operations_are_those_of_the_compiled_program():
    import jax

    config = bench.LLAMA.model_copy(update=SMALL | {"layers": 1, "width": 256, "mlp_width": 512})
    model = bench.random_model(config, jnp.float32)
    ids = bench.random_ids(config, 1, 16)
    run = jax.jit(lambda params, ids: bench.last_logits(params, ids, config=config))
    counted = run.lower(model.params, ids).cost_analysis()["flops"]
    # XLA counts masked products too, and what is no product of matrices.
    assert 0.9 < bench.operations(config, 16) / counted < 1.02
