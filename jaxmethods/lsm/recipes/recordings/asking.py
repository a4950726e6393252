"""Questions about other recordings: to students, to the cascade and to the language model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.data import audio
from jaxmethods.layout import Layout
from jaxmethods.lsm import bias
from jaxmethods.lsm.connector import connect
from jaxmethods.lsm.method import language_model_of
from jaxmethods.lsm.model import IGNORED, Text, assemble, respond
from jaxmethods.lsm.prompts import padded
from jaxmethods.lsm.recipes.recordings.augmenting import (
    PLACED,
    answer_prompts,
    text_program,
    wordings_of,
)
from jaxmethods.lsm.recipes.recordings.config import RecordedStudentConfig
from jaxmethods.lsm.recipes.recordings.hearing import HEARD, TOGETHER
from jaxmethods.lsm.recipes.recordings.models import Models
from jaxmethods.lsm.recipes.recordings.rows import JUDGED, Row, Rows
from jaxmethods.lsm.recipes.recordings.tuning import Tuned, text_of
from jaxmethods.lsm.recipes.recordings.verdicts import asked_of
from jaxmethods.lsm.transcripts.alignment import Aligned, align
from jaxmethods.models import decoder
from jaxmethods.models.decoder import Refilled, lora
from jaxmethods.models.decoder.generation import Generated
from jaxmethods.models.lookup import rows as lookup
from jaxmethods.stages import Arrays, Place, Results


class Questioner:
    """Answers of a run; what several parts need is computed once, and only where one is missing."""

    def __init__(self, models: Models, rows: Rows, results: Results, place: Place):
        self.models, self.results, self.place = models, results, place
        self.heard = results[HEARD][JUDGED]
        self.rows: list[Row] = [rows.splits[JUDGED][number] for number in self.heard.rows]
        self.settings = models.run.judging
        self.base = cache(lambda: place(models.read_language(), PLACED))
        self.plain = text_program(models, self.settings.new_tokens, self.settings.batch)
        self.programs = {one.title: Programs(models, one) for one in models.run.students}

    def wordings(self, kind: str) -> list[str]:
        """What is asked, recording by recording."""
        return wordings_of(self.models, kind, len(self.rows), JUDGED)

    def speech(
        self, student: RecordedStudentConfig, kind: str, strength: float, shift: int = 0
    ) -> Arrays:
        """A student's answers about speech.

        Args:
            student: one of the run's.
            kind: of instructions.
            strength: its additions are multiplied by it.
            shift: 0, or how many places away the recording is that is heard instead.

        Returns:
            `tokens` [S, N, n] and `lengths` [S, N].
        """
        program = self.programs[student.title].speech
        given = self._student(student)
        text = asked_text(self.models, self.wordings(kind))
        frames, lengths = self.heard.frames, self.heard.lengths
        if shift:
            frames, lengths = np.roll(frames, shift, axis=0), np.roll(lengths, shift)
        found, size = [], self.settings.batch
        for start in range(0, len(lengths), size):
            own = (np.arange(start, start + size) % len(lengths)).astype(int)
            asked = jax.tree.map(lambda leaf, own=own: leaf[own], text)
            answers = program(*given, frames[own], lengths[own], asked, jnp.float32(strength))
            tokens, counts = jax.device_get(self.place(answers, Layout()))
            there = min(size, len(lengths) - start)
            found.append((tokens[:, :there], counts[:, :there]))
        tokens, counts = (np.concatenate(each, axis=1) for each in zip(*found, strict=True))
        return {"tokens": tokens, "lengths": counts}

    def text(self, student: RecordedStudentConfig | None, kind: str) -> Arrays:
        """Answers about true transcripts, [S, N, n]; [1, N, n] of no student: before tuning."""
        prompts = [
            self.models.text_prompt(wording, row.text)
            for wording, row in zip(self.wordings(kind), self.rows, strict=True)
        ]
        if student is None:
            return self._answers(self.plain, self.base(), prompts)
        program = self.programs[student.title].text
        return self._answers(program, self._student(student), prompts, several=True)

    def _answers(
        self, program: Any, params: Any, prompts: Sequence[Sequence[int]], several: bool = False
    ) -> Arrays:
        limit = self.models.language.max_positions - self.settings.new_tokens
        prompts = [ids[-limit:] for ids in prompts]  # a transcript that is too long loses its head
        longest = 32 * -(-max(map(len, prompts)) // 32)  # few shapes, few programs
        size, end = self.settings.batch, self.models.end
        found = answer_prompts(program, params, prompts, longest, size, end, self.place)
        leaves = {"tokens": found.tokens, "lengths": found.lengths}
        return leaves if several else {name: leaf[None] for name, leaf in leaves.items()}

    def cascade(self, start: int) -> Arrays:
        """What Whisper writes down of a few recordings, and answers about that."""
        rows = self.rows[start : start + TOGETHER]
        waves = [audio.load(row.audio, folder=row.folder) for row in rows]
        heard = self.models.read_transcriber()(waves)
        found: dict[str, Any] = {"texts": np.frombuffer(json.dumps(heard).encode(), np.uint8)}
        for kind in self.settings.kinds:
            wordings = self.wordings(kind)[start : start + TOGETHER]
            prompts = [self.models.text_prompt(*pair) for pair in zip(wordings, heard, strict=True)]
            answers = self._answers(self.plain, self.base(), prompts)
            found[f"{kind}_tokens"] = answers["tokens"]
            found[f"{kind}_lengths"] = answers["lengths"]
        return found

    def traced(self, student: RecordedStudentConfig) -> Arrays:
        """What a student makes answers from; the answers are the language model's own, about the
        true transcripts, which is what the student was tuned to give."""
        count = min(self.settings.attributed, len(self.rows))
        kind = (asked_of(self.settings.kinds) or list(self.settings.kinds))[0]
        wordings = self.wordings(kind)[:count]
        prompts = [
            self.models.text_prompt(wording, row.text)
            for wording, row in zip(wordings, self.rows[:count], strict=True)
        ]
        found = self._answers(self.plain, self.base(), prompts)
        said = texts_of(self.models, found)[0]
        rows = text_of(
            [self.models.row(*pair) for pair in zip(wordings, said, strict=True)], self.models.end
        )
        given = self._student(student)
        traced = self.programs[student.title].traced(
            *given, self.heard.frames[:count], self.heard.lengths[:count], rows
        )
        return jax.device_get(self.place(traced, Layout()))._asdict()

    def aligned(self, student: RecordedStudentConfig) -> Arrays:
        """Speech tokens beside the transcripts' embeddings."""
        ids = [self.models.tokenizer.encode([row.text])[0] for row in self.rows]
        ids = [own or [self.models.end] for own in ids]
        text, mask = padded(ids, self.models.end, max(map(len, ids)))
        program, given = self.programs[student.title].aligned, self._student(student)
        found, size, total = [], self.settings.batch, len(self.rows)
        for start in range(0, total, size):
            own = np.arange(start, start + size) % total
            frames, lengths = self.heard.frames[own], self.heard.lengths[own]
            values = program(*given, frames, lengths, text[own], mask[own])
            values = jax.device_get(self.place(values, Layout()))
            found.append([leaf[:, : min(size, total - start)] for leaf in values])
        each = (np.concatenate(leaves, axis=1) for leaves in zip(*found, strict=True))
        tokens = np.asarray(jax.device_get(self.results[student.title].tokens))
        return dict(zip(Aligned._fields, each, strict=True)) | {"tokens": tokens}

    def _student(self, student: RecordedStudentConfig) -> tuple[Any, Any]:
        """What was trained, with an axis of seeds, and where the language model began."""
        own: Tuned = self.results[student.title]
        return own.trained, self.base() if student.tune.trains != "all" else {}


class Programs:
    """What students of one kind compute, compiled where it is first called."""

    def __init__(self, models: Models, student: RecordedStudentConfig):
        """Prepares the functions, all of (trained [S, ...], base, ...)."""
        self.models, self.tune = models, student.tune
        self.speech = jax.jit(jax.vmap(self._speech, (0, None, None, None, None, None)))
        self.text = jax.jit(self._all_texts)
        self.traced = jax.jit(jax.vmap(self._traced, (0, None, None, None, None)))
        self.aligned = jax.jit(jax.vmap(self._aligned, (0, None, None, None, None, None)))

    def _language(self, trained: Any, base: Any, strength: Any = None) -> Any:
        whole = language_model_of(trained, base, self.tune.model_copy(update={"lora_scale": 1.0}))
        return lora.weakened(whole, self.tune.lora_scale if strength is None else strength)

    def _connected(self, trained: Any, frames: jax.Array, lengths: jax.Array) -> Any:
        frames = frames.astype(jnp.float32)
        return connect(trained["connector"], self.models.run.connector, frames, lengths)

    def _speech(
        self,
        trained: Any,
        base: Any,
        frames: jax.Array,
        lengths: jax.Array,
        text: Text,
        strength: jax.Array,
    ) -> Generated:
        """Answers about speech, at a strength of the additions."""
        return respond(
            self._language(trained, base, strength),
            self.models.language,
            self._connected(trained, frames, lengths),
            text,
            new_tokens=self.models.run.judging.new_tokens,
            end=self.models.ends,
            pad=self.models.end,
        )

    def _all_texts(self, given: tuple[Any, Any], ids: jax.Array, mask: jax.Array) -> Refilled:
        """Answers about transcripts, [S, B, n]."""
        trained, base = given

        def one(trained: Any) -> Refilled:
            return decoder.generate_in_slots(
                self._language(trained, base),
                self.models.language,
                ids,
                mask=mask,
                new_tokens=self.models.run.judging.new_tokens,
                slots=self.models.run.judging.batch,
                end=self.models.ends,
                pad=self.models.end,
            )

        return jax.vmap(one)(trained)

    def _traced(
        self, trained: Any, base: Any, frames: jax.Array, lengths: jax.Array, text: Text
    ) -> bias.Attribution:
        """What answers are made from, row by row."""
        language, speech = self._language(trained, base), self._connected(trained, frames, lengths)
        rows = assemble(language, speech, text)
        sizes = text.prefix.shape[1], speech.mask.shape[1], text.suffix.shape[1]
        segments = bias.segments_of(*sizes, batch=len(frames))
        return bias.attribute_each(language, self.models.language, rows, segments)

    def _aligned(
        self,
        trained: Any,
        base: Any,
        frames: jax.Array,
        lengths: jax.Array,
        ids: jax.Array,
        mask: jax.Array,
    ) -> Aligned:
        """Speech tokens beside embeddings of what is said."""
        table = self._language(trained, base)["embed"]["tokens"]
        speech = self._connected(trained, frames, lengths)
        return align(speech.tokens, speech.mask, lookup(table, ids, "ids"), mask)


def asked_text(models: Models, wordings: Sequence[str]) -> Text:
    """Rows that are asked about speech and not answered yet.

    Args:
        models: with the template; the longest of all wordings says how long rows are, so that there
            is one program for all kinds.
        wordings: what is asked.

    Returns:
        Prefixes, and the tag as suffix.
    """
    rows = [models.ids(models.template.render_prefix(wording)) for wording in wordings]
    known = [one for kind in models.run.judging.kinds for one in models.wordings[kind]]
    size = max(len(models.ids(models.template.render_prefix(wording))) for wording in known)
    prefix, prefix_mask = padded(rows, models.end, size)
    tag = np.tile(np.asarray(models.tag(), np.int32), (len(rows), 1))
    there = np.ones(tag.shape, bool)
    return Text(prefix, prefix_mask, tag, there, np.full_like(tag, IGNORED))  # type: ignore[arg-type]


def texts_of(models: Models, found: Arrays, prefix: str = "") -> list[list[str]]:
    """Answers [S, N, n] as texts, [S][N]."""
    tokens, lengths = found[f"{prefix}tokens"], found[f"{prefix}lengths"]
    return [
        models.decode([row[:n].tolist() for row, n in zip(*own, strict=True)])
        for own in zip(tokens, lengths, strict=True)
    ]
