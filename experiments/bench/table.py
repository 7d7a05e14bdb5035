"""Measure memory and seconds a round of a large table, beside the same FedAvg written by hand.

The table is made first: ``python -m experiments.bench.table --rows 1000000 --columns 30``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from experiments.bench.process import Measurement, exit_on_sigterm, measure

RIVAL = Path(__file__).parent / "rivals" / "table_loop.py"
SILOS, ROUNDS, BATCH, RATE = 20, 5, 128, 0.05


def make_table(path: Path, rows: int, columns: int) -> None:
    """Write a Parquet file: numbers, the silo of each row, and a class that a network can learn."""
    draw = np.random.default_rng(0)
    values = draw.normal(size=(rows, columns)).astype(np.float32)
    score = values[:, 0] * values[:, 1] + values[:, 2] + 0.5 * draw.normal(size=rows)
    frame = pd.DataFrame(values, columns=[f"x{index}" for index in range(columns)])
    frame["silo"] = [f"silo-{index % SILOS}" for index in range(rows)]
    frame["outcome"] = np.where(score > 0, "yes", "no")
    frame.to_parquet(path)


def study_of(table: Path) -> dict[str, object]:
    """Return a study of five rounds of an MLP on the silos of the table."""
    return {
        "name": "table",
        "data": {
            "source": f"parquet:{table}",
            "table": {"label": "outcome", "silo": "silo"},
            "test": 0.02,
            "validation": 0,
        },
        "partition": {"scheme": "by-column"},
        "model": {"arch": "mlp"},
        "rounds": {"max": ROUNDS, "lr": RATE, "batch_size": BATCH, "stop": "budget"},
        "targets": [0.99],
        "arms": {"fedavg": {"start": "random"}},
        "seeds": [0],
    }


def measure_both(folder: Path, rows: int, columns: int) -> dict[str, Measurement]:
    """Measure fedkd and the loop by hand, each as a command of its own."""
    table, study = folder / "table.parquet", folder / "study.yaml"
    make_table(table, rows, columns)
    study.write_text(yaml.safe_dump(study_of(table)), encoding="utf-8")
    out, log = folder / "out", folder / "loop.jsonl"
    ours = [sys.executable, "-m", "fedkd.cli", "compare", study, "--out", out, "--fresh"]
    loop: list[str | Path] = [sys.executable, RIVAL, table, log, str(ROUNDS), str(BATCH), str(RATE)]
    return {
        "fedkd": measure(
            [str(part) for part in ours],
            folder=folder / "ours",
            environment={
                "FEDKD_CACHE_DIR": str(folder / "cache"),
                "PYTHONPATH": str(Path(__file__).parents[2]),
            },
            rounds=lambda: next(out.glob("table/*/fedavg/seed-0/rounds.jsonl"), None),
        ),
        "loop by hand": measure(loop, folder=folder / "loop", rounds=lambda: log),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=30)
    arguments = parser.parse_args()
    exit_on_sigterm()
    with tempfile.TemporaryDirectory(prefix="fedkd-table-") as folder:
        for name, used in measure_both(Path(folder), arguments.rows, arguments.columns).items():
            sys.stdout.write(
                f"{name}: {used.seconds:.0f} s, a round {used.round_seconds or 0:.1f} s, at most "
                f"{used.peak_bytes / 2**30:.2f} GiB, accuracy {used.accuracies[-1]:.3f}\n"
            )


if __name__ == "__main__":
    main()
