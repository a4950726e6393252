"""Reads a run over and over while it trains: `python -m tests.training.reading_toy RUN KIND ...`.

Ends when the file `stop` lies beside the run; prints how often every kind read.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections import Counter
from pathlib import Path

from tests.training import distributed_toy

KINDS = {
    "latest": ["evaluate"],
    "best": ["evaluate", "--checkpoint", "best"],
    "report": ["report"],
    "compare": ["compare"],
}


def main() -> int:
    run, kinds, counts = Path(sys.argv[1]), sys.argv[2:], Counter()
    while not (run.parent / "stop").exists():
        for kind in kinds:
            command, *options = KINDS[kind]
            with contextlib.redirect_stdout(io.StringIO()):
                code = distributed_toy.main([command, str(run), *options])
            counts[kind] += 1
            if code:
                return code
    print(dict(counts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
