"""How many tasks a network of fixed width holds: the first 1, 2, 4 and 8 tasks of a config.

    python -m benchmarks.vqcd_capacity --out runs/capacity --json capacity.json

Every number of tasks is a run of its own, in which a task owns 1/I of the weights.
Score 0 is uniform actions, 100 the regulator that made the data.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import jaxmethods
from jaxmethods.config import read_yaml
from jaxmethods.files import write_atomically


def measure(config: Path, out: Path, counts: list[int], seeds: int, steps: int | None) -> list:
    """A row for every number of tasks: final scores of all learners and what was forgotten."""
    values, rows = read_yaml(config), []
    for count in counts:
        changes = {"tasks": values["tasks"][:count], "seeds": seeds}
        changes |= {} if steps is None else {"steps": steps}
        run = jaxmethods.run(config, out / f"{count}-tasks", resume=True, **changes)
        found = {name: list(map(float, each)) for name, each in run.metrics["summary"].items()}
        rows.append({"tasks": count, "seeds": seeds, "steps": run.config.model_dump()["steps"]})
        rows[-1] |= found
        print(json.dumps(rows[-1]))
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("configs/vqcd/linear_systems.yaml"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = measure(given.config, given.out, given.counts, given.seeds, given.steps)
    if given.json is not None:
        write_atomically(given.json, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
