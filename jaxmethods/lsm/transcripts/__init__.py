"""What was said against what was heard: normalized transcripts and word error rates."""

from jaxmethods.lsm.transcripts import normalize, word_errors
from jaxmethods.lsm.transcripts.normalize import normalize_basic, normalize_english
from jaxmethods.lsm.transcripts.word_errors import corpus_errors

__all__ = ["corpus_errors", "normalize", "normalize_basic", "normalize_english", "word_errors"]
