"""``report.html``: one self-contained file that makes no network requests.

Text from silos and studies reaches the page in three ways, each escaped: as HTML by Jinja's
autoescape, as Plotly text by ``figure.plain``, as data by :func:`_embed`. The page's content
security policy allows only the two scripts whose hashes it lists, and no requests.

Plotly.js is the unchanged cartesian bundle of npm's plotly.js-cartesian-dist-min 4.1.1. It loads
in a third of the time of full Plotly and covers all plots here.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd.registry import METRICS
from fedkd.report import costs, learning, silos, tables
from fedkd.report.figure import Figure
from fedkd.report.silos_get import silos_get_tables
from fedkd.report.theme import MARKERS, OKABE_ITO
from fedkd.report.tuned import tuning_lines
from fedkd.report.verdict import Verdict, judge
from fedkd.results.folder import REPORT_FILE, Results, find_run
from fedkd.util.files import write_text
from fedkd.util.yaml_loader import dump_yaml
from fedkd.version import VERSION

if TYPE_CHECKING:
    from jinja2 import Template

DASH_ARRAYS = {"solid": "", "dash": "9 4", "dot": "2 3", "dashdot": "8 3 2 3", "longdash": "13 4"}
BIBTEX = f"""\
@software{{fedkd,
  author = {{{{The fedkd authors}}}},
  title = {{fedkd}},
  version = {{{VERSION}}},
  license = {{Apache-2.0}}
}}
@article{{alballa2024practical,
  author = {{Alballa, Norah and Abdelmoniem, Ahmed M. and Canini, Marco}},
  title = {{Practical Insights into Knowledge Distillation for Pre-Trained Models}},
  journal = {{arXiv preprint arXiv:2402.14922}},
  year = {{2024}},
  url = {{https://arxiv.org/abs/2402.14922}}
}}
"""
"""Of fedkd and of the reference paper (Alballa et al.), as in ``CITATION.cff``."""
GLYPHS = dict(zip(MARKERS, "\u25cf\u25a0\u25c6\u25b2\u2605\u271a\u2b1f\u2b22", strict=True))


def write_report(results: Sequence[Results], path: Path) -> Path:
    """Write one page on one or more studies, atomically, and return its path."""
    write_text(path, render_page(results))
    return path


def write_run_report(folder: Path) -> Path:
    """Write ``report.html`` into a results folder, or into the newest one in a study folder."""
    folder = find_run(folder)
    return write_report([Results.read(folder)], folder / REPORT_FILE)


def render_page(results: Sequence[Results]) -> str:
    """Return the page on one or more studies, as HTML."""
    verdicts = [judge(each) for each in results]
    sections = [
        _section(f"s{index}", each, verdict)
        for index, (each, verdict) in enumerate(zip(results, verdicts, strict=True))
    ]
    plotly, script = _asset("plotly-cartesian.min.js"), _asset("page.js")
    overview = []
    if len(results) > 1:
        sentences = [verdict.sentence for verdict in verdicts]
        overview = [
            ("Verdicts", tables.studies_table(results, sentences)),
            ("Exchanges saved to the highest target", tables.arms_table(results)),
        ]
    names = [each.summary["study"] for each in results]
    return _template().render(
        title=", ".join(dict.fromkeys(names)),
        sections=sections,
        overview=overview,
        data=_embed(_drawings(sections)),
        hashes=[_hash(plotly), _hash(script)],
        plotly=plotly,
        script=script,
        style=_asset("page.css"),
        licence=_asset("plotly-licence.txt"),
        bibtex=BIBTEX,
        version=VERSION,
        dashes=DASH_ARRAYS,
        glyphs=GLYPHS,
        colours=OKABE_ITO,
    )


@lru_cache(maxsize=1)
def _template() -> Template:
    """Compile the page's template; that takes longer than to fill it in."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("fedkd.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2")


def all_figures(results: Results, verdict: Verdict) -> list[Figure]:
    """Return every figure that has data, in the order of the page."""
    arm = verdict.row["arm"] if verdict.row else None
    figures = [
        costs.savings(results, verdict.row),
        costs.accuracy(results, "exchanges") if results.summary["runs"] else None,
        costs.accuracy(results, "megabytes") if results.summary["runs"] else None,
        silos.class_map(results),
        silos.teachers(results, arm),
        silos.before_and_after(results, arm),
        learning.gain_and_forgetting(results, arm),
        learning.tuning(results),
    ]
    return [figure for figure in figures if figure is not None]


def _section(prefix: str, results: Results, verdict: Verdict) -> dict[str, Any]:
    """Return the template's variables for one study."""
    resolved = results.summary["resolved"]
    facts = {
        "data": resolved.get("data", {}).get("source"),
        "partition": resolved.get("partition", {}).get("scheme"),
        "silos": results.num_silos,
        "model": resolved.get("model", {}).get("arch"),
        "arms": len(results.arms),
        "seeds": len(results.seeds),
    }
    return {
        "prefix": prefix,
        "label": results.label,
        "study": results.summary["study"],
        "facts": {name: value for name, value in facts.items() if value is not None},
        "verdict": replace(verdict, remarks=[*verdict.remarks, *tuning_lines(results.summary)]),
        "figures": all_figures(results, verdict),
        "savings": [
            (results.name_target(target), tables.savings_table(results, target))
            for target in sorted(results.targets, reverse=True)
        ],
        "costs": [
            (results.name_target(target), tables.cost_table(results, index))
            for index, target in enumerate(results.targets)
        ],
        "silos_get": silos_get_tables(results),
        "metric": METRICS[results.metric],
        "refused": tables.refused_table(results),
        "failures": tables.failures_table(results),
        "settings": tables.settings_table(results),
        "yaml": dump_yaml(resolved),
    }


def _drawings(sections: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures' data by the id of their element on the page."""
    return {
        f"{section['prefix']}-{figure.name}": {
            "start": figure.start,
            "views": [{"data": v.data, "layout": v.layout} for v in figure.variants],
        }
        for section in sections
        for figure in section["figures"]
    }


def _embed(value: Any) -> str:
    """Return JSON that cannot close the script element around it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


@lru_cache
def _hash(script: str) -> str:
    """Return the source expression that allows this script in a content security policy."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


@lru_cache
def _asset(name: str) -> str:
    return (files("fedkd.report") / "assets" / name).read_text(encoding="utf-8")
