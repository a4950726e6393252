"""The page of all speed rows is that of the committed rows, and no other page contradicts them."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest

from benchmarks import speed_page
from benchmarks.pages import part

ROOT = Path(__file__).parents[2]
FILES, EARLIER = speed_page.read(), speed_page.read(speed_page.EPYC)


def by_name(files):
    found = defaultdict(list)
    for file in files.values():
        for row in file["rows"]:
            found[row["name"]].append(row)
    return found


ROWS, EPYC = by_name(FILES), by_name(EARLIER)


def one(name, rows=ROWS, **sizes):
    """The row of these sizes."""
    (found,) = [row for row in rows[name] if sizes.items() <= row["sizes"].items()]
    return found


def torch(name, **sizes):
    return one(name, **sizes)["ratio_torch"]


def slower(name, other):
    """How many times the time of another row."""
    return one(name)["ours"]["median"] / one(other)["ours"]["median"]


def decoding():
    return [row["ratio_torch"] for row in ROWS["decoder/decode"]]


def against_torch(name):
    """Our time, PyTorch's and the ratio, times as pages write them."""
    row = one(name)
    times = [row[who]["median"] for who in ("ours", "torch")]
    return [*(f"{t:.2f} s" if t >= 0.9995 else f"{1e3 * t:.0f} ms" for t in times), torch(name)]


TREE = {"mode": "tree"}
PLAN = {"dim": 32, "episodes": 1, "compact": 0}
SAID = {
    "README.md": [
        (
            "({:.1f}x the published code",
            lambda: [one("obd/outer_step", EPYC, mode="mixed", cores=1)["ratio_reference"]],
        ),
        (
            "({:.0f}x PyTorch one candidate at a time; decoding {:.1f}x to {:.1f}x `transformers`",
            lambda: [torch("novo/score", **TREE), min(decoding()), max(decoding())],
        ),
        ("PyTorch is ahead at one PPO epoch ({:.1f}x)", lambda: [torch("commformer/epoch")]),
    ],
    "docs/methods/kid.md": [
        (
            "A step of KID costs {:.2f} times RKD and {:.2f} times SFT",
            lambda: [slower("kid/kid", "kid/rkd"), slower("kid/kid", "kid/sft")],
        ),
        (
            "The judge of 1000 predictions takes {:.1f} s",
            lambda: [1000 / one("sql/judge")["rate"]],
        ),
    ],
    "docs/methods/novo.md": [
        (
            "{:.0f} candidates a second as a prefix tree, {:.0f} times PyTorch one at a time",
            lambda: [one("novo/score", **TREE)["rate"], torch("novo/score", **TREE)],
        ),
    ],
    "docs/methods/vqcd.md": [
        (
            "A plan for one episode takes {:.1f} ms at width 32, {:.1f} times faster",
            lambda: [
                1e3 * one("vqcd/plan", **PLAN)["ours"]["median"],
                torch("vqcd/plan", **PLAN),
            ],
        ),
        (
            "an update {:.0f} ms, {:.1f} times",
            lambda: [
                1e3 * one("vqcd/train", dim=32, compact=0)["ours"]["median"],
                torch("vqcd/train", dim=32, compact=0),
            ],
        ),
    ],
    "docs/methods/merging.md": [
        (
            "slower than PyTorch on CPU ({:.1f}x to {:.1f}x)",
            lambda: sorted([torch("merging/adapt_batch"), torch("merging/layer_batch_gradient")]),
        ),
    ],
    "docs/methods/rsfm.md": [
        ("| {} | {} | {:.1f} |", lambda: against_torch("rsfm/probe_sweep_48")),
        ("| {} | {} | {:.1f} |", lambda: against_torch("rsfm/neighbors")),
        ("| {} | {} | {:.1f} |", lambda: against_torch("rsfm/features_tiny")),
        ("| {} | {} | {:.1f} |", lambda: against_torch("rsfm/mae_step_tiny")),
        ("| {} | {} | {:.1f} |", lambda: against_torch("rsfm/features_satmae")),
        ("| {} | {} | {:.1f} |", lambda: against_torch("rsfm/mae_step_satmae")),
    ],
}
"""Page -> sentences with numbers, and the rows that they are of."""


def test_the_page_is_what_the_command_writes():
    assert part(speed_page.PAGE.read_text(), "rows") == speed_page.content(FILES, EARLIER)


@pytest.mark.parametrize("files", [FILES, EARLIER])
def test_rows_of_a_file_are_told_apart(files):
    """The page puts rows of two processors side by side by what they are called."""
    for file in files.values():
        names = [speed_page.described(row) for row in file["rows"]]
        assert len(set(names)) == len(names)


def test_every_row_that_something_is_ahead_of_is_explained():
    rows = [row for found in (*ROWS.values(), *EPYC.values()) for row in found]
    assert speed_page.behind(rows).keys() <= speed_page.BEHIND.keys()


@pytest.mark.parametrize("page", SAID)
def test_sentences_with_numbers_say_what_the_rows_say(page):
    text = re.sub(r"\s+", " ", (ROOT / page).read_text())
    for sentence, numbers in SAID[page]:
        assert sentence.format(*numbers()) in text
