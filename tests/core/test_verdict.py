"""The verdict of a report: one honest sentence, whoever won."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from fedkd.report.savings import saved
from fedkd.report.terminal import print_summary
from fedkd.report.verdict import judge
from fedkd.results.comparison import compare_arms
from fedkd.results.folder import Results, percent
from fedkd.results.interval import coverage_of
from fedkd.results.record import RunRecord, build
from fedkd.runner.summary import run_entry

SLOW = [0.1, 0.2, 0.3, 0.4, 0.6]
"""Reaches one half in round 4."""
KEPT = ("arm", "seed", "engine", "curve", "stopped", "exchanges_before_round_1", "max_rounds")
NEVER = [0.1, 0.2, 0.3, 0.4, 0.4]


def verdict(summary: dict[str, Any]) -> Any:
    return judge(Results(summary, "tiny"))


def plain(text: str) -> str:
    return text.replace("\u00a0", " ").replace("\u2212", "-")


def test_a_clear_saving_is_told_with_its_range_and_ceiling(make_summary: Any) -> None:
    found = verdict(make_summary({"fedavg": [SLOW, SLOW], "fedkd": [[0.6], [0.4, 0.6]]}))
    assert found.tone == "good"
    assert plain(found.sentence) == (
        "fedkd saves 62.5 % of the exchanges that fedavg needs to 50 % accuracy: 3 instead of 8 "
        "over 2 seeds (by seed 50 to 75 %; reaching it at the start would save 75 %)."
    )
    assert [plain(value) for _, value, _ in found.tiles] == ["62.5 %", "70 %", "70 %", "50 %"]
    assert any("a confidence interval needs" in remark for remark in found.remarks)


def test_from_three_seeds_on_there_is_an_interval_with_its_measured_coverage(
    make_summary: Any,
) -> None:
    found = verdict(make_summary({"fedavg": [SLOW] * 3, "fedkd": [[0.6]] * 3}))
    assert "(95 % interval 75 to 75 %" in plain(found.sentence)
    assert not any("a confidence interval needs" in remark for remark in found.remarks)
    said = f"studies of 3 seeds {coverage_of(3)} % of such intervals contain the true saving"
    assert any(said in plain(remark) for remark in found.remarks)


def test_a_baseline_that_missed_the_target_bounds_from_below(make_summary: Any) -> None:
    found = verdict(make_summary({"fedavg": [SLOW, NEVER], "fedkd": [[0.6], [0.6]]}))
    assert "saves at least 75 %" in plain(found.sentence)
    assert "2 instead of more than 8" in found.sentence
    assert found.tiles[0][1].startswith("\u2265")


def test_an_arm_that_missed_the_target_is_no_clear_success(make_summary: Any) -> None:
    late = [0.1, 0.2]
    found = verdict(make_summary({"fedavg": [SLOW, SLOW], "fedkd": [late, late]}))
    assert "at most 50 %" in plain(found.sentence)
    assert "on some seed it missed it" in found.sentence
    assert found.tone == "open"


def test_what_is_certain_ranks_before_what_is_a_bound(make_summary: Any) -> None:
    """At most 87.5 % of an arm that missed the target is not more than 75 % of one that reached."""
    curves = {"fedavg": [SLOW] * 2, "fedkd-late": [[0.1], [0.1]], "fedkd-sure": [[0.6], [0.6]]}
    summary = make_summary(curves)
    late, sure = summary["comparison"]
    late["exchanges_saved_pct"] = 87.5
    assert (late["bound"], sure["bound"]) == ("at_most", "exact")
    found = verdict(summary)
    assert found.row["arm"] == "fedkd-sure"
    assert plain(found.sentence).startswith("fedkd-sure saves 75 %")


def test_an_arm_with_failed_runs_is_told_and_not_ranked(make_summary: Any) -> None:
    curves = {"fedavg": [SLOW] * 3, "fedkd-a": [[0.6]] * 3, "fedkd-b": [SLOW[1:]] * 3}
    summary = fail(make_summary(curves), "fedkd-a", seeds=(1, 2))
    found = verdict(summary)
    assert found.row["arm"] == "fedkd-b"
    assert "Not ranked: 2 of 3 runs of fedkd-a failed." in found.remarks
    assert saved(summary["comparison"][0]) == "2 runs failed"
    assert "Not comparable" not in " ".join(found.remarks)
    alone = verdict(fail(make_summary({"fedavg": [SLOW] * 3, "fedkd": [[0.6]] * 3}), "fedkd", (0,)))
    assert alone.row is None
    assert alone.sentence == "No verdict: 1 of 3 runs of fedkd failed."


def test_the_table_shows_a_failed_run_in_the_place_of_its_seed(make_summary: Any) -> None:
    summary = fail(make_summary({"fedavg": [SLOW] * 3, "fedkd": [[0.6]] * 3}), "fedkd", (1,))
    console = Console(record=True, width=160, quiet=False, file=io.StringIO())
    print_summary(summary, console)
    lines = console.export_text().splitlines()
    (line,) = (each for each in lines if each.startswith("│ fedkd"))
    cells = [cell.strip() for cell in line.split("│")]
    assert "1 failed 1" in cells
    assert "1 run failed" in cells
    assert not any("%" in cell for cell in cells[5:])


def test_a_baseline_with_failed_runs_is_not_the_one_to_beat(make_summary: Any) -> None:
    curves = {"fedavg": [SLOW] * 2, "fedkd": [[0.6]] * 2, "fedkd-other": [[0.1, 0.6]] * 2}
    baselines = {"resolved/baselines": ["fedavg", "fedkd-other"]}
    summary = make_summary(curves, changes=baselines)
    assert verdict(fail(summary, "fedkd-other", ())).row["baseline"] == "fedkd-other"
    found = verdict(fail(summary, "fedkd-other", (1,)))
    assert found.row["baseline"] == "fedavg"
    assert "Not ranked: 1 of 2 runs of fedkd-other failed." in found.remarks


def fail(summary: dict[str, Any], arm: str, seeds: tuple[int, ...]) -> dict[str, Any]:
    """Let an arm's runs of some seeds have failed."""
    records = [
        build(RunRecord, {**{key: run[key] for key in KEPT}, "targets": [0.5]})
        for run in summary["runs"]
        if not (run["arm"] == arm and run["seed"] in seeds)
    ]
    failed = [(arm, seed) for seed in seeds]
    summary["runs"] = [run_entry(record) for record in records]
    summary["failures"] = [{"arm": a, "seed": seed, "reason": "diverged"} for a, seed in failed]
    summary["comparison"] = compare_arms(
        records, baselines=summary["resolved"]["baselines"], targets=[0.5], failed=failed
    )
    return summary


def test_a_loss_is_called_a_loss(make_summary: Any) -> None:
    found = verdict(make_summary({"fedavg": [[0.1, 0.6]] * 2, "fedkd": [SLOW, SLOW]}))
    assert found.tone == "bad"
    assert plain(found.sentence).startswith(
        "No arm saves exchanges: to 50 % accuracy the best, fedkd, costs 400 % more than fedavg, "
        "10 instead of 2"
    )
    assert any(
        "More exchanges than fedavg" in r and "400 % more" in plain(r) for r in found.remarks
    )


def test_a_range_around_zero_is_no_saving(make_summary: Any) -> None:
    found = verdict(make_summary({"fedavg": [SLOW, [0.1, 0.6]], "fedkd": [[0.6], [0.1, 0.6]]}))
    assert found.tone == "open"
    assert found.sentence.startswith("No clear saving")


def test_where_both_missed_nothing_is_claimed(make_summary: Any) -> None:
    found = verdict(make_summary({"fedavg": [NEVER], "fedkd": [NEVER]}))
    assert found.row is None
    assert found.sentence.startswith("No verdict")
    assert not found.tiles


def test_a_lower_target_answers_where_the_highest_cannot(make_summary: Any) -> None:
    curves = {"fedavg": [SLOW], "fedkd": [[0.6]]}
    found = verdict(make_summary(curves, (0.5, 0.9)))
    assert "to 50 % accuracy" in plain(found.sentence)
    assert plain(found.remarks[0]).startswith("No result for 90 %: too many runs did not reach it")


@pytest.mark.parametrize(
    ("control", "words"),
    [
        ([0.6], "the saving of fedkd is not due to the teachers' models"),
        (SLOW, "without teachers' models, saves \u221225\u00a0%."),
    ],
)
def test_a_control_never_wins_but_is_always_told(
    control: list[float], words: str, make_summary: Any
) -> None:
    curves = {"fedavg": [SLOW], "fedkd": [[0.6]], "control-densities": [control]}
    found = verdict(make_summary(curves))
    assert found.row["arm"] == "fedkd"
    assert any("control-densities" in r and words in r for r in found.remarks)


def test_a_control_that_missed_the_target_decides_nothing(make_summary: Any) -> None:
    curves = {"fedavg": [SLOW] * 2, "fedkd": [[0.6]] * 2, "control-densities": [[0.1]] * 2}
    found = verdict(make_summary(curves))
    told = next(remark for remark in found.remarks if "control-densities" in remark)
    assert plain(told) == (
        "The control control-densities, without teachers' models, saves at most 75 %: whether the "
        "saving of fedkd is due to the teachers' models is open."
    )


def test_the_best_of_several_is_called_so(make_summary: Any) -> None:
    curves = {"fedavg": [SLOW], "fedkd-a": [[0.4, 0.6]], "fedkd-b": [[0.6]], "fedkd-c": [SLOW]}
    found = verdict(make_summary(curves))
    assert found.row["arm"] == "fedkd-b"
    assert any("best of 3 arms, selected on these results" in remark for remark in found.remarks)


def test_the_stronger_baseline_is_the_one_to_beat(make_summary: Any) -> None:
    curves = {"fedavg": [SLOW], "fedkd": [[0.6]], "fedkd-weak": [[0.1, 0.2, 0.6]]}
    summary = make_summary(curves)
    weak = next(r for r in summary["comparison"] if r["arm"] == "fedkd")
    strong = {**weak, "baseline": "fedkd-weak", "exchanges": {"arm": 1, "baseline": 3}}
    summary["comparison"].append({**strong, "exchanges_saved_pct": 66.6667})
    summary["resolved"]["baselines"].append("fedkd-weak")
    assert verdict(summary).row["baseline"] == "fedkd-weak"


def test_more_seconds_are_not_hidden(make_summary: Any) -> None:
    summary = make_summary({"fedavg": [SLOW], "fedkd": [[0.6]]})
    summary["comparison"][0]["seconds_saved_pct"] = -120.0
    assert any("It takes 120 % more seconds" in plain(r) for r in verdict(summary).remarks)
    summary["comparison"][0]["seconds_saved_pct"] = None
    assert verdict(summary).tiles[2][1] == "\u2013"


def test_what_went_wrong_is_remarked(make_summary: Any) -> None:
    summary = make_summary({"fedavg": [SLOW, SLOW], "fedkd": [[0.6], [0.6]]})
    del summary["runs"][-1]
    summary["failures"] = [{"arm": "fedkd", "seed": 1, "reason": "diverged"}]
    summary["runs"][0]["quarantined"] = [{"silo": "silo-1", "round": 1, "reason": "late"}]
    summary["runs"][0]["stopped"] = "interrupted"
    text = " ".join(verdict(summary).remarks)
    for words in ("Runs that failed: 1", "refused or missing: 1", "unfinished runs: 1."):
        assert words in text


def test_without_a_baseline_no_saving_is_claimed(make_summary: Any) -> None:
    summary = make_summary({"fedkd": [[0.6]], "fedavg": [SLOW]}, changes={"comparison": []})
    summary["resolved"]["baselines"] = []
    assert "names no baseline" in verdict(summary).sentence


@pytest.mark.parametrize(
    ("share", "text"), [(0.5, "50 %"), (0.966, "96.6 %"), (-0.069, "-6.9 %"), (-0.0001, "0 %")]
)
def test_percentages(share: float, text: str) -> None:
    assert plain(percent(share)) == text


def constant(share: float, seeds: int = 2) -> dict[str, Any]:
    return {"constant_accuracy": [{"seed": s, "accuracy": share} for s in range(seeds)]}


def test_a_target_that_one_class_reaches_shows_nothing(make_summary: Any) -> None:
    summary = make_summary({"fedavg": [SLOW, SLOW], "fedkd": [[0.6], [0.4, 0.6]]})
    assert not any("the same class" in each for each in verdict(summary).remarks)
    remarks = [plain(each) for each in verdict(summary | constant(0.55)).remarks]
    assert (
        "The target 50 % accuracy is not above predicting the same class for every example (55 %): "
        "savings to it are meaningless."
    ) in remarks
    assert not any("the same class" in each for each in verdict(summary | constant(0.3)).remarks)
    assert not any("the same class" in each for each in verdict(summary | constant(None)).remarks)


def test_a_start_no_better_than_one_class_is_told_of(make_summary: Any) -> None:
    summary = make_summary({"fedavg": [SLOW, SLOW], "fedkd": [[0.2, 0.6], [0.1, 0.6]]})
    remarks = [plain(each) for each in verdict(summary | constant(0.2)).remarks]
    assert (
        "fedkd starts no better than predicting the same class for every example (20 %)." in remarks
    )
    assert not any("fedavg starts" in each for each in remarks)
    assert not any("starts no better" in e for e in verdict(summary | constant(0.15)).remarks)


def test_a_start_that_no_round_reaches_again_is_told_of(make_summary: Any) -> None:
    falling = [[0.7, 0.4, 0.6], [0.8, 0.6, 0.7]]
    summary = make_summary(
        {"fedavg": [SLOW, SLOW], "control-lda": falling, "fedkd": [[0.7], [0.6]]}
    )
    remarks = [plain(each) for each in verdict(summary).remarks]
    (told,) = [each for each in remarks if "no round reaches the start again" in each]
    assert told.startswith("control-lda falls from 75 % at the start to 50 % after round 1 (means)")
    for curves in ([*falling[:1], [0.8, 0.6, 0.8]], [[0.7, 0.699], [0.7, 0.699]]):
        summary = make_summary({"fedavg": [SLOW, SLOW], "fedkd": curves})
        assert not any("reaches the start again" in each for each in verdict(summary).remarks)


def test_warnings_of_the_check_are_remarks(make_summary: Any) -> None:
    summary = make_summary({"fedavg": [SLOW], "fedkd": [[0.6]]}, changes={"warnings": ["so it is"]})
    assert "so it is." in verdict(summary).remarks
