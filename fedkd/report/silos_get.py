"""What each silo gets: a table for each arm, and remarks on the silos that lose."""

from __future__ import annotations

from fedkd.registry import METRICS
from fedkd.report.savings import Row, candidates, enumerate_names
from fedkd.report.tables import MAX_ROWS, NONE, Table, clip, share
from fedkd.results.folder import Results, percent

MODELS = {
    "own": "own model",
    "global": "global",
    "adjusted": "adjusted",
    "fine_tuned": "fine-tuned",
}
NAMED = 5
"""Most silos that a remark names."""


def silos_get_tables(results: Results) -> dict[str, Table]:
    """Return a table for each arm: one row for each seed and silo; those that lose are marked."""
    tables = {}
    for arm in results.arms:
        rows = [(run["seed"], got) for run in results.runs(arm) for got in run.get("silos_get", [])]
        if not rows:
            continue
        head = ["seed", "silo", "held out", *MODELS.values(), "best", "loses by"]
        cells = [
            [
                *(str(seed), str(got["silo"]), str(got["num_held_out"])),
                *(share(got[model]) for model in MODELS),
                MODELS.get(got["best"], NONE),
                share(got["loses_by"]),
            ]
            for seed, got in rows
        ]
        table = clip(head, cells)
        losing = {index for index, (_, got) in enumerate(rows[:MAX_ROWS]) if got["loses_by"]}
        tables[arm] = Table(table.head, table.rows, table.note, warn=losing)
    return tables


def remarks_on_silos(results: Results, headline: Row | None) -> list[str]:
    """Return for the verdict's arm, or each that is ranked, which silos still lose."""
    reasons = dict.fromkeys(run["notes"].get("silos_get") for run in results.summary["runs"])
    unmeasured = [f"What each silo gets is {reason}." for reason in reasons if reason]
    arms = candidates(results) if headline is None else [headline["arm"]]
    return unmeasured[:1] + [sentence for arm in arms if (sentence := _remark(results, arm))]


def _remark(results: Results, arm: str) -> str:
    compared = [
        (run["seed"], got)
        for run in results.runs(arm)
        for got in run.get("silos_get", [])
        if got["loses_by"] is not None
    ]
    if not compared:
        return ""
    losing = sorted(
        [(seed, got) for seed, got in compared if got["loses_by"] > 0],
        key=lambda pair: -pair[1]["loses_by"],
    )
    name = METRICS[results.metric]
    if not losing:
        return (
            f"With {arm} no silo loses: for each, the global model, as it is, adjusted or "
            f"fine-tuned, has at least the {name} of the silo's own model on its held-out data."
        )
    seeds = len({seed for seed, _ in compared})
    worst = [
        f"{got['silo']}{f', seed {seed},' if seeds > 1 else ''} by {percent(got['loses_by'])}"
        for seed, got in losing[:NAMED]
    ]
    more = f"; {len(losing) - NAMED} more are in the table" if len(losing) > NAMED else ""
    of = f" over {seeds} seeds" if seeds > 1 else ""
    return (
        f"With {arm} {len(losing)} of {len(compared)} silos{of} still lose: their own model has a "
        f"higher {name} on their held-out data than the global model, as it is, adjusted or "
        f"fine-tuned ({enumerate_names(worst)}{more})."
    )
