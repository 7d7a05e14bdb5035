"""The report in a real browser: drawn, quiet, usable on a phone, and read by a screen reader."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from fedkd.report.page import write_report
from fedkd.report.theme import OKABE_ITO
from fedkd.results.folder import Results
from fedkd.util.files import write_json

pytestmark = pytest.mark.browser

ARTEFACTS = Path(__file__).parents[2] / "test-artefacts"
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 375, "height": 800}
SCHEMES = ("light", "dark")
MOST_NODES = 6_000
ATTACK = "<img src=x onerror='window.hacked=1'><b>%{y}</b></script><script>window.hacked=1</script>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start Debian's Chromium."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if path is None:
        pytest.fail("no chromium is installed: apt-get install chromium, or set CHROMIUM")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@dataclass
class Opened:
    """A page that has been opened, and what it did meanwhile."""

    page: Page
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def read_to_the_end(self) -> None:
        """Scroll past every plot: each is drawn when it comes near the view."""
        for plot in self.page.locator(".plot").all():
            plot.scroll_into_view_if_needed()
            plot.locator(".main-svg").first.wait_for()

    def shoot(self, name: str) -> None:
        """Keep a screenshot of the whole page."""
        ARTEFACTS.mkdir(exist_ok=True)
        self.page.screenshot(path=ARTEFACTS / f"{name}.png", full_page=True)

    def bodies(self, plot: str) -> int:
        """Count the lines and markers that a plot shows."""
        return self.page.locator(f"#{plot} .trace").count()

    def background(self, plot: str) -> str:
        """Return the colour behind a plot."""
        return str(
            self.page.locator(f"#{plot} .main-svg").first.evaluate("e => e.style.background")
        )


@pytest.fixture
def visit(browser: Browser) -> Any:
    """Return a context that opens a page and lets it ask nothing of any network."""

    @contextmanager
    def visit(
        path: Path,
        *,
        size: dict[str, int] = DESK,
        scheme: str = "light",
        bypass_csp: bool = False,
        whole: bool = True,
    ) -> Iterator[Opened]:
        phone = size is PHONE
        context = browser.new_context(
            viewport=size,  # type: ignore[arg-type]
            color_scheme=scheme,  # type: ignore[arg-type]
            has_touch=phone,
            is_mobile=phone,
            bypass_csp=bypass_csp,
        )
        opened = Opened(context.new_page())
        page = opened.page
        page.on("console", lambda m: opened.errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: opened.errors.append(str(error)))

        def refuse(route: Any) -> None:
            if route.request.url == path.as_uri():
                route.continue_()
            else:
                opened.requests.append(route.request.url)
                route.abort()

        page.route("**/*", refuse)
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]")
        if whole:
            opened.read_to_the_end()
        yield opened
        context.close()

    return visit


def learn(arm: int, seed: int, rounds: int) -> list[float]:
    """Make up a curve that rises, each arm and seed at a pace of its own."""
    pace = 8 + 6 * (5 - arm) + seed
    return [round(0.9 * (1 - 2 ** (-(n + 4 * arm) / pace)) + 0.05, 5) for n in range(rounds + 1)]


ARMS = ("fedavg", "fedkd-equal", "fedkd-confidence", "fedkd-familiarity", "control-densities")


@pytest.fixture(scope="module")
def make_full() -> Any:
    """Return a function that fills a summary with everything a report can show."""

    def fill(summary: dict[str, Any], silo: str = "silo-") -> dict[str, Any]:
        share = [0.1 * n for n in range(2)]
        flips = {
            "gain": 0.1,
            "forgetting": 0.1,
            "delta": 0.0,
            "per_class": {"gain": share, "forgetting": share},
        }
        names = [f"{silo}{n}" for n in range(10)]
        for run in summary["runs"]:
            teach = run["arm"] != "fedavg"
            run["instruments"] = {
                "rounds": flips,
                "silos": [
                    {"silo": s, "before": 0.05 * n + 0.4 if teach else None, "after": 0.8}
                    for n, s in enumerate(names)
                ],
            }
            if teach:
                run["instruments"] |= {
                    "student": flips,
                    "agreement": 0.3,
                    "teachers": [
                        {"silo": s, "accuracy": 0.05 * n, "complementary": 0.04 * n}
                        for n, s in enumerate(names)
                    ],
                }
        last = summary["runs"][-1]
        last["quarantined"] = [{"silo": names[0], "round": 3, "reason": f"late {names[1]}"}]
        last["targets"][-1] |= dict.fromkeys(("round", "exchanges", "bytes", "seconds"))
        summary["silos"] = [
            {"seed": seed, "silo": s, "num_examples": 9, "class_counts": [n, 9 - n]}
            for seed in summary["resolved"]["seeds"]
            for n, s in enumerate(names)
        ]
        trials = [
            {
                "state": "finished",
                "value": 0.5 + w / 10 - t / 40,
                "settings": {"temperature": t, "weight": w / 4},
            }
            for t in (1, 2, 4, 8)
            for w in range(5)
        ]
        search = {"arm": "fedkd-equal", "judged_by": "validation accuracy", "trials": trials}
        summary["tuning"] = [search]
        return summary

    return fill


@pytest.fixture
def report(make_summary: Any, make_full: Any, tmp_path: Path) -> Path:
    """Write the report of 5 arms x 5 seeds x 200 rounds."""
    curves = {arm: [learn(index, seed, 200) for seed in range(5)] for index, arm in enumerate(ARMS)}
    summary = make_full(make_summary(curves, (0.5, 0.85)))
    return write_report([Results(summary, "tiny 1")], tmp_path / "report.html")


ALL = ("savings", "accuracy-exchanges", "accuracy-megabytes", "classes", "teachers", "silos")
ALL += ("flips", "tuning")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_all_is_drawn_quietly_and_fits(
    size: dict[str, int], scheme: str, visit: Any, report: Path
) -> None:
    with visit(report, size=size, scheme=scheme) as opened:
        opened.shoot(f"report-{'phone' if size is PHONE else 'desk'}-{scheme}")
        assert opened.errors == []
        assert opened.requests == []
        for name in ALL:
            box = opened.page.locator(f"#s0-{name} .main-svg").first.bounding_box()
            assert box is not None
            assert box["height"] > 200, name
            drawn = f"#s0-{name} .trace, #s0-{name} .hm image, #s0-{name} .bars path"
            assert opened.page.locator(drawn).count() > 0, name
        wide = opened.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert wide == [size["width"]] * 2, "the page scrolls sideways"
        # Opened tables scroll within their own boxes.
        opened.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert opened.page.evaluate("document.documentElement.scrollWidth") == size["width"]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_axe_finds_nothing_serious(
    size: dict[str, int], scheme: str, visit: Any, report: Path
) -> None:
    # The page's policy would keep axe's own script out too.
    with visit(report, size=size, scheme=scheme, bypass_csp=True) as opened:
        opened.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        found = Axe().run(opened.page).response["violations"]
    serious = {v["id"]: v["nodes"][0] for v in found if v["impact"] in ("serious", "critical")}
    assert not serious, json.dumps(serious, indent=1)


def test_arms_and_layers_are_switched_in_both_plots(visit: Any, report: Path) -> None:
    plots = ("s0-accuracy-exchanges", "s0-accuracy-megabytes")
    with visit(report) as opened:
        before = [opened.bodies(plot) for plot in plots]
        chip = opened.page.locator("button[data-arm='fedkd-equal']").first
        chip.click()
        without = [opened.bodies(plot) for plot in plots]
        assert all(now < then for now, then in zip(without, before, strict=True))
        pressed = "button[data-arm='fedkd-equal'][aria-pressed='false']"
        assert opened.page.locator(pressed).count() == 2
        opened.page.locator("button[data-layer='seeds']").first.click()
        assert all(opened.bodies(plot) < then for plot, then in zip(plots, without, strict=True))
        chip.click()
        opened.page.locator("button[data-layer='seeds']").last.click()
        assert [opened.bodies(plot) for plot in plots] == before
        assert opened.errors == []


def test_views_are_chosen(visit: Any, report: Path) -> None:
    with visit(report) as opened:
        points = opened.page.locator("#s0-savings .point")
        places = "all => all.map(p => p.getAttribute('transform'))"
        first = points.evaluate_all(places)
        opened.page.select_option("select[data-figure='s0-savings']", index=1)
        assert points.evaluate_all(places) != first
        for select in opened.page.locator("select").all():
            for index in range(select.locator("option").count()):
                select.select_option(index=index)
        assert opened.errors == []


def test_the_scheme_is_switched_and_kept(visit: Any, report: Path) -> None:
    with visit(report, scheme="light") as opened:
        page = opened.page
        light = opened.background("s0-savings")
        page.click("#theme")
        assert page.locator("#theme").inner_text() == "Scheme: light"
        assert opened.background("s0-savings") == light
        page.click("#theme")
        page.wait_for_timeout(100)
        dark = opened.background("s0-savings")
        assert dark != light
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
        page.reload()
        opened.read_to_the_end()
        assert page.locator("#theme").inner_text() == "Scheme: dark"
        assert opened.background("s0-savings") == dark
        assert opened.errors == []
    with visit(report, scheme="dark") as opened:
        assert opened.background("s0-savings") == dark


def test_the_study_is_copied(visit: Any, report: Path) -> None:
    with visit(report) as opened:
        opened.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        opened.page.click("button[data-copy='s0-yaml']")
        opened.page.wait_for_timeout(100)
        text = opened.page.evaluate("navigator.clipboard.readText()")
        assert text.startswith("name: tiny")
        assert opened.page.locator("button[data-copy='s0-yaml']").inner_text() == "Copied"


@pytest.mark.parametrize("bypass_csp", [False, True], ids=["policy", "escaping alone"])
def test_hostile_names_do_nothing(
    bypass_csp: bool, visit: Any, make_summary: Any, make_full: Any, tmp_path: Path
) -> None:
    """Escaping holds even where a browser knows no content security policy."""
    curves = {"fedavg": [learn(0, 0, 20)], "fedkd": [learn(3, 0, 20)]}
    summary = make_full(make_summary(curves, (0.3, 0.5)), silo=ATTACK)
    summary["classes"] = [ATTACK, ATTACK + "2"]
    summary["failures"] = [{"arm": "fedkd", "seed": 9, "reason": ATTACK}]
    path = write_report([Results(summary, "tiny 1")], tmp_path / "hostile.html")
    with visit(path, bypass_csp=bypass_csp) as opened:
        for plot in ("classes", "teachers", "silos", "flips"):
            opened.page.locator(f"#s0-{plot}").scroll_into_view_if_needed()
            opened.page.locator(f"#s0-{plot}").hover(position={"x": 300, "y": 150})
        opened.page.wait_for_timeout(300)
        assert opened.page.evaluate("window.hacked === undefined")
        assert opened.page.locator("img, .plot a, .plot b").count() == 0
        ticks = opened.page.locator("#s0-classes .ytick text").all_text_contents()
        assert ATTACK + "0" in ticks, "the name is shown as it is"
        assert (opened.errors, opened.requests) == ([], [])


def test_a_plot_is_drawn_when_it_comes_near_the_view_or_is_printed(
    visit: Any, report: Path
) -> None:
    with visit(report, whole=False) as opened:
        drawn = opened.page.locator(".plot:has(.main-svg)")
        few = drawn.count()
        assert 1 <= few < len(ALL)
        # The scheme changes what is there; a view may be chosen of what is not there yet.
        opened.page.click("#theme")
        opened.page.locator("select").last.select_option(index=1)
        assert few <= drawn.count() < len(ALL)
        opened.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert drawn.count() == len(ALL)
        assert opened.errors == []


def test_a_large_study_is_small_and_ready_with_little(browser: Browser, report: Path) -> None:
    """5 arms x 5 seeds x 200 rounds: what drawing costs grows with the nodes on the page.

    The seconds of the page's thread until it is ready for its reader are kept beside the
    screenshots; machines differ too much for a bound on them.
    """
    assert report.stat().st_size < 6_000_000
    page = browser.new_page()
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto(report.as_uri())
    page.wait_for_selector("html[data-ready]")
    metrics = session.send("Performance.getMetrics")["metrics"]
    nodes = page.evaluate("document.querySelectorAll('*').length")
    page.close()
    spent = {metric["name"]: metric["value"] for metric in metrics}
    ARTEFACTS.mkdir(exist_ok=True)
    write_json(ARTEFACTS / "large-report.json", {"nodes": nodes, "seconds": spent["TaskDuration"]})
    assert 0 < nodes < MOST_NODES


def test_several_studies_on_one_page(
    visit: Any, make_summary: Any, make_full: Any, tmp_path: Path
) -> None:
    curves = {"fedavg": [learn(0, 0, 20)], "fedkd": [learn(3, 0, 20)]}
    results = [Results(make_full(make_summary(curves, (0.3, 0.5))), f"tiny {n}") for n in range(2)]
    path = write_report(results, tmp_path / "both.html")
    for size in (DESK, PHONE):
        with visit(path, size=size) as opened:
            opened.shoot(f"report-two-{'phone' if size is PHONE else 'desk'}")
            assert opened.page.locator(".plot .main-svg").count() >= 2 * len(ALL)
            width = opened.page.evaluate("document.documentElement.scrollWidth")
            assert width == size["width"]
            assert opened.errors == []


def test_colours_are_those_that_every_eye_tells_apart(visit: Any, report: Path) -> None:
    with visit(report) as opened:
        strokes = opened.page.locator("#s0-accuracy-exchanges .js-line").evaluate_all(
            "lines => lines.map(l => l.style.stroke + ' ' + l.style.strokeDasharray)"
        )
    assert len(set(strokes)) >= len(ARMS)
    expected = {
        tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)) for colour in OKABE_ITO[1 : len(ARMS)]
    }
    found = {
        tuple(int(n) for n in stroke.split(")")[0].removeprefix("rgb(").split(","))
        for stroke in strokes
        if stroke.startswith("rgb(")
    }
    assert expected <= found
