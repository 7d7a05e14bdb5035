"""The file of a search: damaged, foreign or unwritable, it is refused in a sentence."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.trial import TrialState

from fedkd.config import Consolidation
from fedkd.errors import FedKDError, UserError
from fedkd.tuning import store
from fedkd.tuning.space import Space
from fedkd.tuning.trials import POINT, SCORES

pytestmark = pytest.mark.usefixtures("quick_searches")

SPACE = Space(Consolidation(), labelled=False, weightings=["equal", "confidence"])
KEY = "key"


def open_search(path: Path) -> None:
    """Open the file as ``fedkd tune`` does and look at what earlier processes have left."""
    with store.opened(path, "tiny/fedkd", "tpe", KEY) as search:
        store.check_trials(
            path,
            search.get_trials(deepcopy=False),
            lambda trial: store.check_start_trial(trial, SPACE),
        )


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return a file with three trials: one finished, one pruned, one that a kill left running."""
    path = tmp_path_factory.mktemp("search") / "tune-fedkd.db"
    with store.opened(path, "tiny/fedkd", "tpe", KEY) as search:
        for state in (TrialState.COMPLETE, TrialState.PRUNED, None):
            trial = search.ask()
            trial.set_user_attr(POINT, SPACE.suggest(trial))
            trial.set_user_attr(SCORES, {"0": 0.5})
            if state is not None:
                search.tell(trial, 0.5 if state == TrialState.COMPLETE else None, state=state)
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "tune-fedkd.db"
    path.write_bytes(content)
    return path


def test_what_a_kill_left_is_read(path: Path) -> None:
    open_search(path)
    with store.opened(path, "tiny/fedkd", "tpe", KEY) as search:
        states = [trial.state for trial in search.get_trials()]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]


def test_an_empty_file_is_a_new_search(path: Path) -> None:
    """It is what a kill leaves before the first page is written."""
    path.write_bytes(b"")
    open_search(path)


@pytest.mark.parametrize("name", ["a{b}.db", "a?b=c#d.db", "100%.db", "déjà vu.db"])
def test_any_name_will_do(name: str, tmp_path: Path) -> None:
    for _ in range(2):
        open_search(tmp_path / name)
    assert (tmp_path / name).stat().st_size > 0


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated in the middle": lambda whole: whole[: len(whole) // 2],
    "truncated by one page": lambda whole: whole[:-4096],
    "truncated in its header": lambda whole: whole[:40],
    "not SQLite": lambda _: b"trials: " * 2000,
    "zeros": lambda whole: bytes(len(whole)),
    "half of a page overwritten": lambda whole: whole[:4096] + b"\xff" * 2048 + whole[6144:],
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_file_is_refused_and_left_alone(how: str, path: Path) -> None:
    damaged = DAMAGE[how](path.read_bytes())
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"tune-fedkd\.db is damaged, or is not .* use --fresh"):
        open_search(path)
    assert path.read_bytes() == damaged


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE trial_params",
        "DROP TABLE study_directions",
        "ALTER TABLE trials RENAME COLUMN state TO status",
        "DELETE FROM studies",
        "DELETE FROM study_user_attributes",
        "DELETE FROM trial_values",
        "DELETE FROM trial_params",
        "DELETE FROM trial_user_attributes",
        "DELETE FROM trials WHERE number = 0",
        "UPDATE alembic_version SET version_num = 'later'",
        "UPDATE trials SET state = 'WELL'",
        "UPDATE trials SET number = 'first'",
        "UPDATE trial_values SET value = 'much'",
        "UPDATE trial_values SET value = 17",
        "UPDATE trial_params SET distribution_json = '{}'",
        "UPDATE trial_params SET param_value = 1e300",
        "UPDATE trial_user_attributes SET value_json = '['",
        "UPDATE trial_user_attributes SET value_json = '[]' WHERE key = 'point'",
        """UPDATE trial_user_attributes SET value_json = '{"lr": "fast"}' WHERE key = 'point'""",
        """UPDATE trial_user_attributes SET value_json = '{"speed": 1}' WHERE key = 'point'""",
        """UPDATE trial_user_attributes SET value_json = '{"0": 2}' WHERE key = 'scores'""",
        "UPDATE trial_user_attributes SET key = 'other' WHERE key = 'scores'",
    ],
)
def test_rows_of_no_search_are_refused(statement: str, path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute(statement)
    with pytest.raises(UserError, match=r"tune-fedkd\.db is damaged, or is not a search"):
        open_search(path)


def test_another_programs_database_gets_no_tables(path: Path) -> None:
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE people (name TEXT)")
    before = path.read_bytes()
    with pytest.raises(UserError, match="it contains other tables"):
        open_search(path)
    assert path.read_bytes() == before


def test_a_folder_of_that_name_is_refused(path: Path) -> None:
    path.unlink()
    path.mkdir()
    with pytest.raises(FedKDError, match="cannot be read or written: unable to open"):
        open_search(path)


def test_a_file_that_is_damaged_meanwhile_ends_the_search(path: Path) -> None:
    def search_on() -> None:
        with store.opened(path, "tiny/fedkd", "tpe", KEY) as search:
            with contextlib.closing(sqlite3.connect(path)) as database, database:
                database.execute("DROP TABLE trials")
            search.ask()

    with pytest.raises(FedKDError, match="cannot be read or written any more: no such table"):
        search_on()
