"""python docs/examples/own_divergence.py: a language model distilled with your divergence, seconds.

Any function of two arrays of logits can be the divergence; `over_chunks` applies the heads to a few
tokens at a time, so that logits of a whole batch never exist. Here it is Hellinger's distance.
"""

import jax
import jax.numpy as jnp
import optax

from jaxmethods import kid
from jaxmethods.language import divergences
from jaxmethods.models import decoder

CONFIG = decoder.DecoderConfig(
    family="llama", vocab_size=32, width=16, mlp_width=32, layers=1, heads=2, kv_heads=2,
    head_dim=8, rotary_dim=8, max_positions=16,
)  # fmt: skip


def hellinger(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """1 - sum sqrt(p q), [...] of logits [..., V]."""
    return 1 - jnp.sqrt(jax.nn.softmax(student) * jax.nn.softmax(teacher)).sum(-1)


def main(steps: int = 60) -> tuple[float, float]:
    model = kid.of_decoder(CONFIG)  # or a `kid.LanguageModel` of your own functions
    keys = jax.random.split(jax.random.key(0), 3)
    teacher, student = (decoder.init_params(key, CONFIG) for key in keys[:2])
    teacher = jax.tree.map(lambda leaf: leaf * 6, teacher)  # surer than a random one
    ids = jax.random.randint(keys[2], (8, 12), 0, CONFIG.vocab_size)

    mask, positions = jnp.ones_like(ids), jnp.broadcast_to(jnp.arange(12), ids.shape)

    def loss(params, teacher):
        def of_tokens(states):  # [C, D] of both
            return hellinger(model.logits(params, states[0]), model.logits(teacher, states[1]))

        states = [model.whole(each, ids, mask, positions) for each in (params, teacher)]
        tokens = [each.reshape(-1, CONFIG.width) for each in states]
        return divergences.over_chunks(of_tokens, tokens, chunk=32).mean()

    optimizer = optax.adam(0.02)

    def step(carry, _):
        params, moments = carry
        value, gradient = jax.value_and_grad(loss)(params, teacher)
        updates, moments = optimizer.update(gradient, moments)
        return (optax.apply_updates(params, updates), moments), value

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=steps))
    _, losses = run((student, optimizer.init(student)))
    print(f"Hellinger distance from the teacher: {losses[0]:.3f} -> {losses[-1]:.3f}")
    return float(losses[0]), float(losses[-1])


if __name__ == "__main__":
    main()
