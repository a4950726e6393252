"""Numbers in words as digits, as Whisper's English normalizer writes them.

"two hundred and thirty-five" is 235, "twenty twenty seven" 2027, "minus five percent" -5%. Words
are read one by one with the word before and behind; a number that is held grows by what fits it,
and is written when something comes that doesn't (Radford et al., arXiv 2212.04356, appendix C).
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import TypeAlias

Held: TypeAlias = int | str | None
"""A number under way: an integer, or digits where it is no sum (a decimal, a year, "double oh")."""

ZEROS = {"o", "oh", "zero"}
_ONES = [
    *("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"),
    *("twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
]
ONES = {name: value for value, name in enumerate(_ONES, 1)}
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
TENS = {name: 10 * value for value, name in enumerate(_TENS, 2)}
_LARGE = [
    *("thousand", "million", "billion", "trillion", "quadrillion", "quintillion", "sextillion"),
    *("septillion", "octillion", "nonillion", "decillion"),
]
MULTIPLIERS = {"hundred": 100} | {name: 1000**n for n, name in enumerate(_LARGE, 1)}

ONES_ENDED = {
    **{("sixes" if name == "six" else f"{name}s"): (value, "s") for name, value in ONES.items()},
    **{"zeroth": (0, "th"), "first": (1, "st"), "second": (2, "nd"), "third": (3, "rd")},
    **{"fifth": (5, "th"), "twelfth": (12, "th")},
    **{
        name + ("h" if name.endswith("t") else "th"): (value, "th")
        for name, value in ONES.items()
        if value > 3 and value not in (5, 12)
    },
}
"""Plurals and ordinals, with what stands behind their digits."""
TENS_ENDED = {name.replace("y", "ies"): (value, "s") for name, value in TENS.items()} | {
    name.replace("y", "ieth"): (value, "th") for name, value in TENS.items()
}
MULTIPLIERS_ENDED = {f"{name}s": (value, "s") for name, value in MULTIPLIERS.items()} | {
    f"{name}th": (value, "th") for name, value in MULTIPLIERS.items()
}
SIGNS = {"minus": "-", "negative": "-", "plus": "+", "positive": "+"}
CURRENCIES = {
    **{"pound": "£", "pounds": "£", "euro": "€", "euros": "€"},
    **{"dollar": "$", "dollars": "$", "cent": "¢", "cents": "¢"},
}
PREFIXES = {*SIGNS.values(), *CURRENCIES.values()}
SPECIAL = {"and", "double", "triple", "point"}
DECIMAL = {*ONES, *TENS, *ZEROS}
VOCABULARY = {
    *DECIMAL,
    *MULTIPLIERS,
    *ONES_ENDED,
    *TENS_ENDED,
    *MULTIPLIERS_ENDED,
    *SIGNS,
    *CURRENCIES,
    *SPECIAL,
    "per",
    "percent",
}
DIGITS = re.compile(r"\d+(\.\d+)?")


def write_digits(text: str) -> str:
    """Numbers of a lower-case text in digits.

    Args:
        text: words, maybe with digits, signs and currencies among them.

    Returns:
        The words with one space between them.
    """
    words = _separated(_halves(text)).split()
    return _readable(" ".join(_Scan().read(words)))


class _Scan:
    """A text under way."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self.held: Held = None
        self.prefix: str | None = None

    def read(self, words: list[str]) -> list[str]:
        """All words, one after the other."""
        skip = False
        for place, word in enumerate(words):
            if skip:
                skip = False
                continue
            before = words[place - 1] if place else None
            behind = words[place + 1] if place + 1 < len(words) else None
            skip = self._take(word, before, behind)
        self._emit_held()
        return self.written

    def _take(self, word: str, before: str | None, behind: str | None) -> bool:
        """One word; whether the one behind it is used up."""
        bare = word[1:] if word[0] in PREFIXES else word
        numeric = behind is not None and bool(DIGITS.fullmatch(behind))
        if DIGITS.fullmatch(bare):
            self._digits(word, bare)
        elif word in ZEROS:
            self.held = f"{self.held or ''}0"
        elif word in ONES:
            self.held = _with_ones(self.held, ONES[word], before)
        elif word in ONES_ENDED:
            number, ending = ONES_ENDED[word]
            self._emit(f"{_with_ones(self.held, number, before)}{ending}")
        elif word in TENS:
            self.held = _with_tens(self.held, TENS[word])
        elif word in TENS_ENDED:
            number, ending = TENS_ENDED[word]
            self._emit(f"{_with_tens(self.held, number)}{ending}")
        elif word in MULTIPLIERS:
            self.held = self._multiplied(MULTIPLIERS[word], or_zero=True)
        elif word in MULTIPLIERS_ENDED:
            number, ending = MULTIPLIERS_ENDED[word]
            self._emit(f"{self._multiplied(number, or_zero=False)}{ending}")
        elif word in SIGNS:
            self._emit_held()
            if behind in VOCABULARY or numeric:
                self.prefix = SIGNS[word]
            else:
                self._emit(word)
        elif word in CURRENCIES and self.held is not None:
            self.prefix = CURRENCIES[word]
            self._emit_held()
        elif word == "percent" and self.held is not None:
            self._emit(f"{self.held}%")
        elif word == "per" and self.held is not None and behind == "cent":
            self._emit(f"{self.held}%")
            return True
        elif word in SPECIAL and (behind in VOCABULARY or numeric):
            return self._special(word, before, behind, numeric)
        else:
            self._emit_held()
            self._emit(word)
        return False

    def _digits(self, word: str, bare: str) -> None:
        """A number that is in digits already."""
        if isinstance(self.held, str) and self.held.endswith("."):
            self.held += word
            return
        self._emit_held()
        if bare != word:
            self.prefix = word[0]
        value = Fraction(bare)
        self.held = value.numerator if value.denominator == 1 else bare

    def _special(self, word: str, before: str | None, behind: str | None, numeric: bool) -> bool:
        """And, double, triple, point, with a number behind."""
        if word == "and":
            if before not in MULTIPLIERS:
                self._emit_held()
                self._emit(word)
        elif word == "point":
            if behind in DECIMAL or numeric:
                self.held = f"{self.held or ''}."
        elif behind in ONES or behind in ZEROS:
            times = 2 if word == "double" else 3
            self.held = f"{self.held or ''}{str(ONES.get(behind or '', 0)) * times}"
            return True
        else:
            self._emit_held()
            self._emit(word)
        return False

    def _multiplied(self, factor: int, or_zero: bool) -> int:
        """The held number times hundred, thousand, ..., or that number where none fits."""
        held = self.held
        if held is None:
            return factor
        if isinstance(held, str) or (or_zero and held == 0):
            try:
                product = Fraction(held) * factor
            except ValueError:
                product = None
            if product is not None and product.denominator == 1:
                return product.numerator
            self._emit_held()
            return factor
        return held // 1000 * 1000 + held % 1000 * factor

    def _emit_held(self) -> None:
        if self.held is not None:
            self._emit(str(self.held))

    def _emit(self, text: str) -> None:
        self.written.append((self.prefix or "") + text)
        self.held = self.prefix = None


def _with_ones(held: Held, number: int, before: str | None) -> int | str:
    """A number with one to nineteen behind it."""
    if held is None:
        return number
    if isinstance(held, str) or before in ONES:
        if before in TENS and number < 10:
            return f"{str(held)[:-1]}{number}"
        return f"{held}{number}"
    return held + number if held % (10 if number < 10 else 100) == 0 else f"{held}{number}"


def _with_tens(held: Held, number: int) -> int | str:
    """A number with twenty to ninety behind it."""
    if held is None:
        return number
    if isinstance(held, int) and held % 100 == 0:
        return held + number
    return f"{held}{number}"


def _halves(text: str) -> str:
    """ "three and a half" as "three point five"."""
    segments = re.split(r"\band\s+a\s+half\b", text)
    found = []
    for place, segment in enumerate(segments):
        if not segment.strip():
            continue
        found.append(segment)
        if place < len(segments) - 1:
            last = segment.rsplit(maxsplit=2)[-1]
            number = last in DECIMAL or last in MULTIPLIERS
            found.append("point five" if number else "and a half")
    return " ".join(found)


def _separated(text: str) -> str:
    """Spaces between letters and digits, but for endings."""
    text = re.sub(r"([a-z])([0-9])", r"\1 \2", text)
    text = re.sub(r"([0-9])([a-z])", r"\1 \2", text)
    return re.sub(r"([0-9])\s+(st|nd|rd|th|s)\b", r"\1\2", text)


def _readable(text: str) -> str:
    """Cents behind their dollars, and a lone 1 in letters."""
    text = re.sub(
        r"([€£$])([0-9]+) (?:and )?¢([0-9]{1,2})\b",
        lambda found: f"{found[1]}{found[2]}.{int(found[3]):02d}",
        text,
    )
    text = re.sub(r"[€£$]0.([0-9]{1,2})\b", lambda found: f"¢{int(found[1])}", text)
    return re.sub(r"\b1(s?)\b", r"one\1", text)
