"""Scale on paper, checked by the compiler: `python -m benchmarks.scaling`.

Every sharded recipe's step is compiled ahead of time from shapes alone for 1, 2, 8, 64 and 256
virtual CPU devices (`scaling_programs`); flops, memory traffic and collective bytes of a device are
read from the compiled programs (`compiled`). The programs for 1 and 2 devices also predict the
others: what a device computes is c + d / n, what it sends s (n - 1) / n. Times on an accelerator
follow from its published peaks, with nothing overlapped:

    seconds = max(flops / peak, traffic / memory) + sent / link + sent / near / far
              + collectives x latency

where the term with `far` is for groups larger than the `near` chips that a link joins: each of
those sends its share of what leaves them.

    python -m benchmarks.scaling [--only NAME ...] [--devices N ...] [--json FILE] [--plot FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks.compiled import Work, work_of
from benchmarks.pages import DOCS, replace_part

DEVICES = (1, 2, 8, 64, 256)
RESULTS = Path(__file__).parent / "results" / "scaling.json"
FIGURE = DOCS / "images" / "scaling.png"
PAGE = DOCS / "guides" / "scaling.md"


class Accelerator(NamedTuple):
    """Published peaks of a chip."""

    title: str
    flops: float
    """Of float32 matrix products as JAX computes them by default: bfloat16 passes, TF32."""
    memory: float
    """Bytes/s."""
    link: float
    """Bytes/s that a chip can send to those near it."""
    near: int
    """How many chips that link joins."""
    far: float
    """Bytes/s that a chip can send beyond them."""
    room: float
    """Bytes of memory."""


ACCELERATORS = {
    # https://cloud.google.com/tpu/docs/v5e: 197 TFLOP/s bfloat16, 16 GB at 819 GB/s, 400 GB/s
    # between chips in both directions together, a torus of 256 chips.
    "v5e": Accelerator("TPU v5e", 197e12, 819e9, 200e9, 256, 200e9, 16e9),
    # https://www.nvidia.com/en-us/data-center/h100, SXM: 989 TFLOP/s TF32 with sparsity, half
    # without; 80 GB at 3.35 TB/s; NVLink 900 GB/s in both directions together among eight. Beyond
    # those of a DGX H100, 400 Gb/s a chip: https://docs.nvidia.com/dgx/dgxh100-user-guide.
    "h100": Accelerator("H100 SXM", 494.5e12, 3.35e12, 450e9, 8, 50e9, 80e9),
}
LATENCY = 5e-6
"""Seconds that a collective takes beyond its bytes: assumed, nobody publishes it as a peak."""


def seconds(work: Work, chip: Accelerator) -> float:
    """Of a step on a chip, if it reached its peaks and nothing overlapped.

    Args:
        work: of one device.
        chip: where.

    Returns:
        Seconds.
    """
    alone = max(work.flops / chip.flops, work.traffic / chip.memory)
    beyond = work.sent / chip.near / chip.far if work.group > chip.near else 0.0
    return alone + work.sent / chip.link + beyond + LATENCY * work.collectives


def predicted(one: Work, two: Work, devices: int, grows: bool) -> Work:
    """What a device does of more, from the programs for one and for two.

    Args:
        one: of the program for one device.
        two: of that for two.
        devices: n.
        grows: whether the whole grows with the devices; else it is divided among them.

    Returns:
        Flops and traffic that don't depend on n if the whole grows with it, else c + d / n; bytes
        that are sent as those of a ring of n.
    """

    def divided(first: float, second: float) -> float:
        if grows:
            return second
        return max(0.0, 2 * second - first) + 2 * max(0.0, first - second) / devices

    sent = two.sent * 2 * (devices - 1) / devices
    return Work(
        divided(one.flops, two.flops), divided(one.traffic, two.traffic), sent, two.collectives,
        devices,
    )  # fmt: skip


def measure(name: str, devices: Sequence[int]) -> dict[str, Any]:
    """One recipe's row: what its programs contain, and what those for 1 and 2 predict.

    Args:
        name: of `programs()`.
        devices: which numbers of devices are compiled for, 1 and 2 among them.

    Returns:
        A mapping that JSON can hold.
    """
    from benchmarks.scaling_programs import compiled, programs

    program = programs()[name]
    found: dict[int, Work] = {}
    rows: dict[str, Any] = {}
    for number in devices:
        start = time.perf_counter()
        step = compiled(program, number)
        work, memory = work_of(step.as_text()), step.memory_analysis()
        found[number] = work
        rows[str(number)] = work._asdict() | {
            "resident": memory.argument_size_in_bytes + memory.temp_size_in_bytes,
            "predicted": predicted(found[1], found[2], number, bool(program.grows))._asdict()
            if number > 2
            else None,
            "mesh": program.mesh(number).model_dump(),
            "compile_seconds": round(time.perf_counter() - start, 1),
        }
        jax.clear_caches()
    return {"title": program.title, "grows": program.grows, "devices": rows}


def efficiency(row: Mapping[str, Any], devices: int, chip: Accelerator) -> float:
    """Speed-up over one device, divided by the number of devices."""
    one, many = (seconds(_work(row, number), chip) for number in (1, devices))
    return one / many if row["grows"] else one / many / devices


def _work(row: Mapping[str, Any], devices: int) -> Work:
    return Work(*(row["devices"][str(devices)][field] for field in Work._fields))


def draw(rows: Mapping[str, Any], path: Path) -> None:
    """Efficiency against the number of devices, a panel an accelerator."""
    from matplotlib.ticker import NullFormatter, NullLocator

    from jaxmethods.plotting import new_figure, open_frame, write_png

    figure = new_figure(10, 4.2)
    panels = figure.subplots(1, 2, sharey=True)
    marks = "osD^v<>"
    for panel, chip in zip(panels, ACCELERATORS.values(), strict=True):
        for mark, row in zip(marks, rows.values(), strict=False):
            numbers = sorted(map(int, row["devices"]))
            heights = [100 * efficiency(row, number, chip) for number in numbers]
            kind = "-" if row["grows"] else "--"
            panel.plot(numbers, heights, kind, marker=mark, ms=4.5, lw=1.6, label=row["title"])
        panel.set_xscale("log", base=2)
        panel.set_xticks(DEVICES, [str(number) for number in DEVICES])
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.set(xlabel="devices", ylim=(0, 105))
        panel.set_title(chip.title, loc="left", fontweight="bold", fontsize=11)
        panel.grid(alpha=0.25)
        open_frame(panel)
    panels[0].set_ylabel("predicted efficiency, %")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center",
                  frameon=False, fontsize=9, title="dashed: work of a given size")  # fmt: skip
    write_png(figure, path, dpi=130)


def table(rows: Mapping[str, Any]) -> str:
    """Markdown: what a device does in a step, and the times that follow."""
    head = ["recipe", "devices", "GFLOP", "GB moved", "MB sent", "collectives", "GB held"]
    head += [f"{chip.title}, ms (efficiency)" for chip in ACCELERATORS.values()]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for row in rows.values():
        for number in sorted(map(int, row["devices"])):
            own, work = row["devices"][str(number)], _work(row, number)
            cells = [row["title"] if number == 1 else "", str(number)]
            cells += [f"{work.flops / 1e9:.3g}", f"{work.traffic / 1e9:.3g}"]
            cells += [f"{work.sent / 1e6:.3g}", f"{work.collectives:.0f}"]
            cells.append(f"{own['resident'] / 1e9:.3g}")
            for chip in ACCELERATORS.values():
                cells.append(
                    f"{1e3 * seconds(work, chip):.3g} ({100 * efficiency(row, number, chip):.0f} %)"
                )
            lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def check(rows: Mapping[str, Any]) -> str:
    """Markdown: what the programs for 1 and 2 predict, over what the others contain."""
    head = ["recipe", "devices", "flops", "bytes moved", "bytes sent"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for row in rows.values():
        for number in sorted(map(int, row["devices"])):
            guess = row["devices"][str(number)]["predicted"]
            if guess:
                work = _work(row, number)
                pairs = [(guess[name], getattr(work, name)) for name in Work._fields[:3]]
                cells = [f"{a / b:.2f}" if b else ("1.00" if not a else "-") for a, b in pairs]
                lines.append([row["title"] if number == 8 else "", str(number), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--only", nargs="+", help="recipes; default: all")
    parser.add_argument("--devices", nargs="+", type=int, default=list(DEVICES))
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--plot", type=Path, default=FIGURE)
    parser.add_argument(
        "--tables", action="store_true", help="from the rows of --json, nothing compiled"
    )
    options = parser.parse_args(arguments)
    if not options.tables:
        jax.config.update("jax_num_cpu_devices", max(options.devices))
        _measure_all(options)
    rows = json.loads(options.json.read_text())["rows"]
    print(f"{table(rows)}\n\n{check(rows)}")
    draw(rows, options.plot)
    if options.json == RESULTS:
        replace_part(PAGE, "steps", table(rows))
        replace_part(PAGE, "check", check(rows))
    return 0


def _measure_all(options: argparse.Namespace) -> None:
    from benchmarks.scaling_programs import programs
    from jaxmethods.files import write_atomically
    from jaxmethods.records.provenance import describe_environment

    known = json.loads(options.json.read_text())["rows"] if options.json.is_file() else {}
    for name in options.only or list(programs()):
        known[name] = measure(name, options.devices)
        print(
            name, {n: r["compile_seconds"] for n, r in known[name]["devices"].items()}, flush=True
        )
        rows = {one: known[one] for one in programs() if one in known}
        content = {"environment": describe_environment(), "rows": rows}
        write_atomically(options.json, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
