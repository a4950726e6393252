"""Words of a SQL text: those that Spider's parser sees, and DISTINCT outside of literals."""

from __future__ import annotations

import re

LITERALS_AND_WORDS = re.compile(
    r"""'(?:[^']|'')*' | "(?:[^"]|"")*" | `(?:[^`]|``)*` | \[[^\]]*\]
    | --[^\n]* | /\*.*?\*/ | [A-Za-z_][A-Za-z0-9_$]*(?:\.[A-Za-z_][A-Za-z0-9_$]*)*""",
    re.VERBOSE | re.DOTALL,
)
CURRENT_YEAR = re.compile(r"YEAR\s*\(\s*CURDATE\s*\(\s*\)\s*\)\s*", re.IGNORECASE)
# How the Penn Treebank's tokenizer splits, as far as texts without quotes need it.
TREEBANK = [
    (re.compile(r"([«“\u2018„]|[`]+)"), r" \1 "),
    (re.compile(r'([^\.])(\.)([\]\)}>"\'»”\u2019 ]*)\s*$'), r"\1 \2 \3 "),
    (re.compile(r"([:,])([^\d])"), r" \1 \2"),
    (re.compile(r"([:,])$"), r" \1 "),
    (re.compile(r"\.{2,}"), r" \g<0> "),
    (re.compile(r"[;@#$%&]"), r" \g<0> "),
    (re.compile(r"[?!]"), r" \g<0> "),
    (re.compile(r"[*]"), r" \g<0> "),
    (re.compile(r"[\]\[\(\)\{\}\<\>]"), r" \g<0> "),
    (re.compile(r"--"), r" -- "),
    (re.compile(r"([»”\u2019])"), r" \1 "),
]


def join_operators(sql: str) -> str:
    """The text with `> =`, `< =` and `! =` written as one."""
    return sql.replace("> =", ">=").replace("< =", "<=").replace("! =", "!=")


def remove_distinct(sql: str) -> str:
    """The text without the word DISTINCT, which stays in literals, names, comments and IS [NOT]
    DISTINCT FROM, an operator."""
    before: list[str] = ["", ""]

    def kept(match: re.Match[str]) -> str:
        word = match[0].lower()
        operator = before[1] == "is" or before == ["is", "not"]
        before[:] = before[1], word
        return "" if word == "distinct" and not operator else match[0]

    return LITERALS_AND_WORDS.sub(kept, sql)


def replace_current_year(sql: str) -> str:
    """The text with MySQL's current year replaced by the one of Spider's questions."""
    return CURRENT_YEAR.sub("2020", sql)


def words(sql: str) -> list[str]:
    """Lower-case words as Spider's parser sees them; a literal is one, in double quotes.

    Raises:
        ValueError: an odd number of quotes.
    """
    pieces = sql.replace("'", '"').split('"')
    if len(pieces) % 2 == 0:
        raise ValueError("expected an even number of quotes")
    literals = pieces[1::2]
    # A literal touches its neighbors in the text: so does its stand-in.
    joined = pieces[0]
    for number, after in enumerate(pieces[2::2]):
        joined += f"__val_{number}__{after}"
    found = []
    for word in _split(joined):
        place = re.fullmatch(r"__val_(\d+)__", word)
        inside = place and int(place[1]) < len(literals)
        found.append(f'"{literals[int(place[1])]}"' if place and inside else word.lower())
    return _join_comparisons(found)


def _split(text: str) -> list[str]:
    for pattern, replacement in TREEBANK:
        text = pattern.sub(replacement, text)
    return text.split()


def _join_comparisons(found: list[str]) -> list[str]:
    for place in reversed([place for place, word in enumerate(found) if word == "="]):
        if found[place - 1] in ("!", ">", "<"):
            found = [*found[: place - 1], f"{found[place - 1]}=", *found[place + 1 :]]
    return found
