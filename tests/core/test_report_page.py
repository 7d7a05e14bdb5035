"""The report's page: whole, self-contained, and deaf to what silos and studies try to say in it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedkd.config import Study
from fedkd.errors import UserError
from fedkd.report.figure import plain
from fedkd.report.page import BIBTEX, render_page
from fedkd.results.folder import Results, find_run

ATTACKS = [
    "</script><script>window.hacked=1</script>",
    "<img src=x onerror='window.hacked=1'>",
    '"><svg onload=window.hacked=1>',
    "<a href='javascript:window.hacked=1'>silo</a>",
    "{{ 7 * 7 }} %{y} ${1} <!--",
]


class Page(HTMLParser):
    """What a browser would see: elements, attributes, and the text of some."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self._open = ""
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = dict(attrs).get("id") or tag

    def handle_data(self, data: str) -> None:
        self.texts[self._open] = self.texts.get(self._open, "") + data
        if self._open != "script":
            self.words.append(data)


@pytest.fixture
def hostile(make_summary: Any) -> dict[str, Any]:
    """Return a summary in which every name and reason is an attack."""
    summary: dict[str, Any] = make_summary({"fedavg": [[0.1, 0.6]], "fedkd": [[0.6]]})
    summary["classes"] = ATTACKS[:2]
    summary["failures"] = [{"arm": "fedkd", "seed": 1, "reason": ATTACKS[0]}]
    summary["resolved"]["data"]["source"] = f"npz:{ATTACKS[2]}"
    summary["machine"]["platform"] = ATTACKS[1]
    for row, attack in zip(summary["silos"], ATTACKS, strict=False):
        row["silo"] = attack
    run = summary["runs"][1]
    run["quarantined"] = [{"silo": a, "round": 0, "reason": a} for a in ATTACKS]
    run["notes"] = {"mean_weights": dict.fromkeys(ATTACKS, 0.2), "fallback": ATTACKS[0]}
    run["instruments"] = {
        "student": flips(),
        "rounds": flips(),
        "agreement": 0.5,
        "teachers": [{"silo": a, "accuracy": 0.5, "complementary": None} for a in ATTACKS],
        "silos": [{"silo": a, "before": 0.5, "after": 0.4, "flips": None} for a in ATTACKS],
    }
    trial = {"state": "finished", "value": 0.7, "settings": {"temperature": 1, "weight": 0.5}}
    summary["tuning"] = [{"arm": "fedkd", "judged_by": ATTACKS[0], "trials": [trial]}]
    return summary


def flips() -> dict[str, Any]:
    per_class = {"gain": [0.5, None], "forgetting": [0.1, None]}
    return {"gain": 0.25, "forgetting": 0.05, "delta": 0.2, "per_class": per_class}


def page(*summaries: dict[str, Any]) -> str:
    return render_page([Results(s, f"tiny {n}") for n, s in enumerate(summaries)])


def drawings(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Page(text).texts["figures"])
    return found


def test_no_name_or_reason_becomes_markup(hostile: dict[str, Any]) -> None:
    text = page(hostile)
    parsed = Page(text)
    tags = [tag for tag, _ in parsed.elements]
    assert tags.count("script") == 3
    assert not {"img", "iframe", "object", "embed", "base", "form"} & set(tags)
    for tag, attributes in parsed.elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("href", "src"):
            value = attributes.get(name) or "#"
            assert value.startswith("#") or (tag, value) == ("link", "data:,")
    (data,) = re.findall(r'id="figures">(.*?)</script>', text, re.DOTALL)
    assert "<" not in data, "nothing in the data can end its element"
    shown = "".join(parsed.words)
    for attack in ATTACKS:
        assert attack in shown, "an attack is shown as the text that it is"


def test_no_name_becomes_plotly_markup_or_template(hostile: dict[str, Any]) -> None:
    def texts(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [text for each in value.values() for text in texts(each)]
        if isinstance(value, list):
            return [text for each in value for text in texts(each)]
        return [value] if isinstance(value, str) else []

    for text in texts(drawings(page(hostile))):
        without_ours = text.replace("<br>", "").replace("<extra>", "").replace("</extra>", "")
        assert "<" not in without_ours, text
    assert plain("%{y}") == "%&#123;y}"


def test_the_policy_allows_the_pages_own_scripts_alone(hostile: dict[str, Any]) -> None:
    text = page(hostile)
    parsed = Page(text)
    policy = next(
        a["content"] for _, a in parsed.elements if a.get("http-equiv") == "Content-Security-Policy"
    )
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert re.findall(r"'sha256-([^']+)'", policy) == hashes
    assert "unsafe-eval" not in policy


def test_plotly_is_the_file_that_npm_has() -> None:
    """By the SHA-256 of package/plotly-cartesian.min.js in plotly.js-cartesian-dist-min 4.1.1."""
    bundle = (files("fedkd.report") / "assets" / "plotly-cartesian.min.js").read_bytes()
    digest = hashlib.sha256(bundle).hexdigest()
    assert digest == "79542150855a52c567260e3137095dbe2b744e6d702a5cabe67da246942fba7a"


def test_the_page_shows_what_there_is_and_no_more(
    hostile: dict[str, Any], make_summary: Any
) -> None:
    always = ["savings", "accuracy-exchanges", "accuracy-megabytes", "classes"]
    bare = make_summary({"fedavg": [[0.1, 0.6]], "fedkd": [[0.6]]})
    assert list(drawings(page(bare))) == [f"s0-{name}" for name in always]
    every = [*always, "teachers", "silos", "flips", "tuning"]
    assert list(drawings(page(hostile))) == [f"s0-{name}" for name in every]
    del bare["silos"], bare["classes"]
    assert "s0-classes" not in drawings(page(bare)), "results of an older fedkd are shown too"


@pytest.mark.parametrize(
    ("points", "kind", "axes"),
    [
        ([(1, 0.1), (1, 0.5), (2, 0.1), (2, 0.5)], "heatmap", ("temperature", "weight")),
        ([(1, 0.1), (2, 0.2), (3, 0.3)], "scatter", ("temperature", "lr")),
    ],
)
def test_a_tuning_is_a_map_or_single_points(
    points: Any, kind: str, axes: Any, make_summary: Any
) -> None:
    trials = [
        {
            "state": "finished",
            "value": 0.5 + x / 10,
            "settings": dict(zip(axes, (x, y), strict=True)),
        }
        for x, y in points
    ]
    trials.append({"state": "pruned", "value": 0.99, "settings": trials[0]["settings"]})
    summary = make_summary({"fedavg": [[0.1, 0.6]], "fedkd": [[0.6]]})
    summary["tuning"] = [{"arm": "fedkd", "judged_by": "validation accuracy", "trials": trials}]
    (view,) = drawings(page(summary))["s0-tuning"]["views"]
    assert view["data"][0]["type"] == kind
    assert [view["layout"][a]["title"]["text"] for a in ("xaxis", "yaxis")] == list(axes)
    if kind == "heatmap":
        assert view["data"][0]["z"] == [[0.6, 0.7], [0.6, 0.7]]


def test_every_plot_has_words_and_a_table_behind_it(hostile: dict[str, Any]) -> None:
    text = page(hostile)
    parsed = Page(text)
    plots = [a for _, a in parsed.elements if a.get("class") == "plot"]
    assert {a["id"] for a in plots} == set(drawings(text))
    assert all(a["role"] == "img" and len(a["aria-label"] or "") > 40 for a in plots)
    assert text.count("<summary>Table: ") == len(plots)


def test_the_study_on_the_page_is_the_study(make_summary: Any) -> None:
    summary = make_summary({"fedavg": [[0.1, 0.6]], "fedkd": [[0.6]]})
    shown = yaml.safe_load(Page(page(summary)).texts["s0-yaml"])
    assert Study.model_validate(shown).to_dict() == summary["resolved"]


def test_unreached_runs_are_marked(make_summary: Any) -> None:
    summary = make_summary({"fedavg": [[0.1, 0.2], [0.1, 0.6]], "fedkd": [[0.6], [0.6]]})
    traces = drawings(page(summary))["s0-accuracy-exchanges"]["views"][0]["data"]
    marked = {(t["meta"]["arm"], t["meta"]["layer"]): t["x"] for t in traces}
    assert marked["fedavg", "unreached"] == [1]
    assert marked["fedavg", "reached"] == [1]
    assert ("fedkd", "unreached") not in marked
    seeds = next(t for t in traces if t["meta"] == {"arm": "fedavg", "layer": "seeds"})
    assert seeds["y"] == [0.1, 0.2, None, 0.1, 0.6, None]


def test_several_studies_are_compared(make_summary: Any) -> None:
    one = make_summary({"fedavg": [[0.1, 0.6]], "fedkd": [[0.6]]})
    two = make_summary({"fedavg": [[0.1, 0.2]], "fedkd": [[0.3, 0.2]]})
    parsed = Page(page(one, two))
    ids = [a["id"] for _, a in parsed.elements if a.get("id")]
    assert len(ids) == len(set(ids))
    assert {"s0", "s1", "s0-savings", "s1-savings"} <= set(ids)
    assert "2 studies" in "".join(parsed.words)


def test_a_large_study_stays_small(make_summary: Any) -> None:
    curve = [0.1 + 0.8 * index / 200 for index in range(201)]
    arms = ["fedavg", *(f"fedkd-{n}" for n in "abcd")]
    summary = make_summary({arm: [curve] * 5 for arm in arms}, (0.85, 0.95))
    assert len(page(summary).encode()) < 6_000_000


def test_an_enormous_study_is_thinned(make_summary: Any) -> None:
    curve = [0.1 + 0.8 * index / 200 for index in range(201)]
    summary = make_summary({"fedavg": [curve], "fedkd": [curve]})
    run = summary["runs"][1]
    summary["runs"] += [{**run, "seed": seed} for seed in range(1, 400)]
    traces = drawings(page(summary))["s0-accuracy-exchanges"]["views"][0]["data"]
    assert sum(len(t["x"]) for t in traces if t["meta"]["layer"] == "seeds") < 30_000


def test_the_licence_and_the_way_to_cite_are_on_the_page(make_summary: Any) -> None:
    text = page(make_summary({"fedavg": [[0.1, 0.6]]}))
    assert "Licensed under the MIT license" in text
    assert "Permission is hereby granted, free of charge" in text
    cff = yaml.safe_load((Path(__file__).parents[2] / "CITATION.cff").read_text())
    paper = cff["references"][0]
    for word in (cff["version"], cff["license"], paper["title"], str(paper["year"]), paper["url"]):
        assert word in BIBTEX
    assert all(author["family-names"] in BIBTEX for author in paper["authors"])


def test_results_are_found_and_refused_in_words(tmp_path: Path, make_summary: Any) -> None:
    with pytest.raises(UserError, match="is not a results folder"):
        Results.read(tmp_path)
    for stamp in ("20250101T000000Z", "20250102T000000Z"):
        (tmp_path / stamp).mkdir()
        (tmp_path / stamp / "study.yaml").write_text("name: tiny")
    newest = find_run(tmp_path)
    assert newest.name == "20250102T000000Z"
    with pytest.raises(UserError, match="has not ended; show its progress with fedkd watch"):
        Results.read(tmp_path)
    (newest / "summary.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        Results.read(tmp_path)
    (newest / "summary.json").write_text('{"schema": 2}')
    with pytest.raises(UserError, match="is not a summary of schema 1"):
        Results.read(tmp_path)
    (newest / "summary.json").write_text('{"schema": 1, "study": "tiny"}')
    with pytest.raises(UserError, match="resolved: is missing"):
        Results.read(tmp_path)
    summary = make_summary({"fedavg": [[0.1, 0.6]]})
    (newest / "summary.json").write_text(json.dumps(summary))
    assert Results.read(tmp_path).summary == summary
    search = {"study": "tiny", "arm": "fedkd", "judged_by": "validation accuracy", "trials": []}
    (tmp_path / "tune-fedkd.json").write_text(json.dumps(search))
    (tmp_path / "tune-fedkd-other.json").write_text(json.dumps({**search, "study": "other"}))
    assert Results.read(newest).summary == {**summary, "tuning": [search]}


def test_curves_can_be_switched_to_every_metric(make_summary: Any) -> None:
    summary = make_summary({"fedavg": [[0.1, 0.6]], "fedkd": [[0.6]]})
    assert not metric_menus(page_of(summary)), "a single metric needs no choice"
    for run in summary["runs"]:
        for point in run["curve"]:
            point["metrics"] = {"accuracy": point["accuracy"], "auroc": 0.9, "macro_f1": None}
    summary["resolved"]["metric"] = "auroc"
    text = page_of(summary)
    figures = json.loads(Page(text).texts["figures"])
    for axis in ("exchanges", "megabytes"):
        figure = figures[f"s0-accuracy-{axis}"]
        titles = [view["layout"]["yaxis"]["title"]["text"] for view in figure["views"]]
        assert titles == ["test accuracy", "test AUROC"]
        assert figure["start"] == 1
        assert [bool(view["layout"].get("shapes")) for view in figure["views"]] == [False, True]
    assert metric_menus(text) == ["s0-accuracy-exchanges", "s0-accuracy-megabytes"]
    assert "90\u00a0%" in text


def metric_menus(text: str) -> list[str | None]:
    menus = [a for _, a in Page(text).elements if a.get("data-choice") == "metric"]
    return [menu["data-figure"] for menu in menus]


def page_of(summary: dict[str, Any]) -> str:
    return render_page([Results(summary, "tiny")])
