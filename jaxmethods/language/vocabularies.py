"""Whether two models speak of the same tokens, so that their logits can be compared.

Models of one family often differ in the padding of their vocabularies only (Qwen2.5: 151,936 and
152,064 rows for 151,665 tokens). Then both are cut to what they share. With other tokenizers an id
is another word in each model, and a divergence of their logits means nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from jaxmethods.errors import UserError


class VocabularyError(UserError):
    """Two models whose logits can't be compared."""


def common_vocabulary(
    student: int,
    teacher: int,
    student_tokens: Mapping[str, int],
    teacher_tokens: Mapping[str, int],
) -> int:
    """How many leading logits of both models are compared.

    Args:
        student, teacher: rows of the models' embeddings.
        student_tokens, teacher_tokens: token -> id, of their tokenizers.

    Returns:
        the smaller size.

    Raises:
        VocabularyError: the tokenizers differ, or a token would be cut.
    """
    sizes = f"vocabularies of {student} (student) and {teacher} (teacher) rows"
    if dict(student_tokens) != dict(teacher_tokens):
        different = dict(student_tokens).items() ^ dict(teacher_tokens).items()
        token, place = min(different, key=lambda item: (item[1], item[0]))
        raise VocabularyError(
            f"tokenizers: expected equal ones for {sizes}, got {len(student_tokens)} and "
            f"{len(teacher_tokens)} tokens that differ, first in {token!r} (id {place})"
        )
    common = min(student, teacher)
    largest = max(student_tokens.values(), default=-1)
    if largest >= common:
        raise VocabularyError(
            f"tokenizers: {sizes} share {common}, but the tokenizer uses ids up to {largest}"
        )
    return common
