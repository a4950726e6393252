"""python docs/examples/transcribe_and_follow.py: from samples to words and to answers, seconds.

The whole path of a speech-text model at toy sizes, with random weights: log-mel features, Whisper's
encoder and decoder (a transcript), connector and language model (an answer to an instruction). With
`whisper.load(DIR)` and `lsm.load_published(DIR)` the same calls take released weights; random ones
say nothing that means anything.
"""

import jax
import jax.numpy as jnp

from jaxmethods import lsm
from jaxmethods.data.log_mel import log_mel
from jaxmethods.models import decoder, whisper
from jaxmethods.models.qformer import QFormerConfig

HEARING = whisper.EncoderConfig(width=8, layers=1, heads=2, mlp_width=16, positions=50)
WHISPER = whisper.WhisperConfig(
    encoder=HEARING, text=whisper.TextConfig(vocab_size=20, layers=1, heads=2, mlp_width=16)
)
LANGUAGE = decoder.DecoderConfig(
    family="llama", vocab_size=20, width=8, mlp_width=16, layers=1, heads=2, kv_heads=2,
    head_dim=4, rotary_dim=4, max_positions=64,
)  # fmt: skip
CONNECTOR = lsm.ConnectorConfig(
    qformer=QFormerConfig(width=8, layers=1, heads=2, mlp_width=8, dropout=0.0),
    policy="fixed", window=10,
)  # fmt: skip


def main() -> tuple[jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 4)
    ears = whisper.init_params(keys[0], WHISPER)
    connector = lsm.init_connector(keys[1], CONNECTOR, HEARING.width, LANGUAGE.width)
    model = decoder.init_params(keys[2], LANGUAGE)
    clips = jax.random.normal(keys[3], (2, WHISPER.features.n_samples)) / 10  # a second of noise

    @jax.jit
    def transcribe_and_follow(ears, connector, model, clips):
        features = log_mel(clips, WHISPER.features)  # [B, 80, frames]
        said = whisper.transcribe(ears, WHISPER, features, jnp.array([1]), end=2, new_tokens=4)
        frames = whisper.encode(ears["encoder"], HEARING, features).last  # [B, positions, width]
        speech = lsm.connect(connector, CONNECTOR, frames, jnp.array([50, 30]))
        ones = jnp.ones((2, 3), int)  # an instruction of three tokens, the assistant's tag of two
        text = lsm.Text(3 * ones, ones > 0, 4 * ones[:, :2], ones[:, :2] > 0, -100 * ones[:, :2])
        answer = lsm.respond(model, LANGUAGE, speech, text, new_tokens=4, end=2)
        return said.tokens, answer.tokens

    said, answered = transcribe_and_follow(ears, connector, model, clips)
    print(f"transcripts, tokens of two clips: {said.tolist()}")
    print(f"answers to an instruction: {answered.tolist()}")
    return said, answered


if __name__ == "__main__":
    main()
