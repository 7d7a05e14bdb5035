"""Run what has not been recorded, then rebuild RESULTS.md from the records.

python -m experiments.paper            run and rebuild
python -m experiments.paper --rebuild  rebuild only
"""

from __future__ import annotations

import argparse
import sys
import time

from experiments.paper.claims import write_results
from experiments.paper.plan import FOLDER, RATES, plan
from experiments.paper.recipe import choose_missing
from experiments.paper.record import is_recorded, record
from fedkd.errors import FedKDError

RESULTS = FOLDER / "RESULTS.md"


def main() -> None:
    """Run, record, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rebuild", action="store_true", help="run nothing")
    parser.add_argument(
        "--only", default="", metavar="STUDY", help="run this study's variants alone"
    )
    given = parser.parse_args()
    for study in RATES:
        if given.only in ("", study) and not given.rebuild:
            choose_missing(study)
    missing = [run for run in plan() if not is_recorded(run) and given.only in ("", run.study)]
    for index, run in enumerate(missing if not given.rebuild else [], 1):
        print(f"{index} of {len(missing)}: {run.record.stem}", file=sys.stderr)  # noqa: T201 -- a script
        begin = time.perf_counter()
        try:
            record(run)
        except FedKDError as error:
            sys.exit(f"paper: {run.record.stem}: {error}")
        print(f"  {time.perf_counter() - begin:.0f} s", file=sys.stderr)  # noqa: T201 -- a script
    write_results(RESULTS)
    print(f"written: {RESULTS}")  # noqa: T201 -- a script


if __name__ == "__main__":
    main()
