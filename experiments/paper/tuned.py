"""Tune every arm of the federations whose rounds are compared.

Each is one ``fedkd tune --arms all``, as users have it, on validation data and on seeds that no
study is judged on. What comes out is kept in ``experiments/tuned``; delete a file there to search
again. Trials are kept in ``runs``, so that the same command goes on where it was stopped.

    python -m experiments.paper.tuned
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from experiments.paper.plan import SOURCES, TUNED, Federation
from fedkd.util.files import write_text

TRIALS = 16
"""Number of trials of each arm."""
OUT = Path("runs")
SCHEMA_LINE = "# yaml-language-server: $schema=../study.schema.json\n"


def tune_missing(only: str = "") -> None:
    """Tune the federations without a tuned study whose names begin with ``only``.

    Raises:
        SystemExit: a search failed or was interrupted.
    """
    missing = [each for each in TUNED if not each.tuned.is_file() and each.name.startswith(only)]
    for federation in missing:
        begin = time.perf_counter()
        command = _command(federation)
        if code := subprocess.run(command, check=False).returncode:  # noqa: S603 -- our own command
            sys.exit(code)
        federation.tuned.parent.mkdir(exist_ok=True)
        tuned = (OUT / federation.name / "tuned.yaml").read_text(encoding="utf-8")
        write_text(federation.tuned, SCHEMA_LINE + tuned)
        minutes = (time.perf_counter() - begin) / 60
        print(f"written: {federation.tuned}, {minutes:.0f} minutes")  # noqa: T201 -- a script


def _command(federation: Federation) -> list[str]:
    return [
        *(sys.executable, "-m", "fedkd.cli", "tune", str(SOURCES[federation.data])),
        *(word for override in federation.overrides for word in ("--set", override)),
        *("--arms", "all", "--trials", str(TRIALS), "--out", str(OUT)),
    ]


def main() -> None:
    """Tune what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="NAME", help="such as digits, or digits-iid")
    tune_missing(parser.parse_args().only)


if __name__ == "__main__":
    main()
