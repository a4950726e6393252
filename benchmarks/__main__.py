"""`python -m benchmarks [--only NAME ...] [--cores N] [--json FILE] [--plot FILE] ...`."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

MODULES = (
    "environments",
    "commformer",
    "bilevel",
    "obd",
    "decoder",
    "novo",
    "merging",
    "vqcd",
    "kid",
    "lsm",
    "rsfm",
    "interpret",
)
ON_REQUEST = ("time_to_99",)
"""Slow ones, measured only when named."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=MODULES + ON_REQUEST, default=MODULES)
    parser.add_argument("--cores", type=int, default=0, help="pin the process to so many CPU cores")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=60.0, help="longest time for a row")
    parser.add_argument(
        "--processor", action="store_true", help="count the processor's seconds, on a busy machine"
    )
    parser.add_argument("--questions", type=Path, help="a question file for novo; default: drawn")
    parser.add_argument("--json", type=Path, help="write all rows, with device and versions")
    parser.add_argument("--plot", type=Path, help="draw rates and ratios (PNG)")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse()
    if options.cores:
        # XLA's CPU thread pool takes its size from the affinity, so it must be set first.
        available = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, available[: options.cores])
    from rich.console import Console

    from benchmarks.harness import Settings
    from jaxmethods.records.provenance import describe_environment
    from jaxmethods.records.run_folder import write_atomically

    console = Console()
    environment = describe_environment() | {"cores": len(os.sched_getaffinity(0))}
    for name, value in environment.items():
        console.print(f"{name:>18}  {value}", highlight=False)
    settings = Settings(
        options.repeats,
        options.seconds,
        environment["cores"],
        options.processor,
        options.questions,
    )
    rows = []
    for name in options.only:
        for row in importlib.import_module(f"benchmarks.{name}").rows(settings):
            rows.append(row.as_json())
            console.print(describe(rows[-1]), highlight=False, soft_wrap=True)
    if options.json:
        content = {"environment": environment, "rows": rows}
        write_atomically(options.json, json.dumps(content, indent=1) + "\n")
    if options.plot:
        from benchmarks.plot import draw

        draw(rows, environment, options.plot)
    return 0


def describe(row: dict[str, Any]) -> str:
    """One line for the terminal."""
    sizes = " ".join(f"{name}={value}" for name, value in row["sizes"].items())
    ours = row["ours"]
    parts = [
        f"{row['name']:<36} {sizes:<34} {row['rate']:>12,.0f} {row['unit']}",
        f"median {1e3 * ours['median']:.2f} ms [{1e3 * ours['low']:.2f}, {1e3 * ours['high']:.2f}]",
        f"compile {ours['compile']:.1f} s",
    ]
    if ours["peak_bytes"]:
        parts.append(f"{ours['peak_bytes'] / 2**20:.0f} MiB")
    for other in ("reference", "torch"):
        if row[f"ratio_{other}"]:
            parts.append(f"{row[f'ratio_{other}']:.1f}x {other}")
    return "  ".join([*parts, row["note"]]).rstrip()


if __name__ == "__main__":
    sys.exit(main())
