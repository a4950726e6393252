"""python docs/examples/score_questions.py [MODEL_DIR]: questions answered by head norms, seconds.

A question says a word four times, and right is to say it again. A small random decoder's heads see
that, since a mean of equal values is longer than one of different values; 20 labeled questions find
out which heads: no gradient, no logits. With a Hugging Face folder (Llama, Qwen, ...) its heads do.
"""

import sys

import jax
import numpy as np

from jaxmethods import novo
from jaxmethods.models import decoder

SMALL = decoder.DecoderConfig(
    family="llama", vocab_size=64, width=16, mlp_width=32, layers=2, heads=4, kv_heads=4,
    head_dim=4, rotary_dim=4, max_positions=32,
)  # fmt: skip


def questions(number: int, vocabulary: int):
    """Token ids [question][candidate], and which candidate is right."""
    rng = np.random.default_rng(0)
    sequences, labels = [], rng.integers(0, 3, number)
    for label in labels:
        word, *ends = rng.choice(np.arange(1, vocabulary), 4, replace=False).tolist()
        ends[label] = word
        sequences.append([[word] * 4 + [end] for end in ends])
    return sequences, labels


def main(folder: str | None = None) -> float:
    if folder is None:
        config, params = SMALL, decoder.init_params(jax.random.key(0), SMALL)
    else:
        config, params = decoder.load(folder)
    sequences, labels = questions(50, min(config.vocab_size, 64))
    scores = novo.score(params, config, sequences)  # norms [50, 3, layers x heads]
    voters = novo.fit(scores.norms[:20], scores.mask[:20], labels[:20], voters="max")
    answers = novo.predict(scores.norms[20:], scores.mask[20:], voters)
    accuracy = float((np.asarray(answers) == labels[20:]).mean())
    print(f"accuracy on 30 other questions: {accuracy:.2f} (by chance 0.33)")
    return accuracy


if __name__ == "__main__":
    main(*sys.argv[1:2])
