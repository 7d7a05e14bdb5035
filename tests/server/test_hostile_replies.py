"""Whatever a reply holds, it costs its silo one refusal at most, and never ends the run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord
from flwr.app import RecordDict as Records
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clients.silo import Silo
from fedkd.data.columns import Column, TableSums
from fedkd.data.images import Images
from fedkd.distillation.density.basis import make_basis
from fedkd.distillation.selection import choose
from fedkd.engines.inline import InlineGrid, make_grid
from fedkd.errors import FedKDError
from fedkd.federation.federation import Federation
from fedkd.messages import keys, table_sums
from fedkd.messages.validate import MAX_REASON, RefusedError, printable, read_state
from fedkd.models.spool import StateSpool
from fedkd.results.record import Point, RunRecord, build
from strategies.collect import collect_densities, collect_teachers
from strategies.context import RunContext
from strategies.distil_at_silo import distil_at_silo
from strategies.evaluation import ask_silos, ask_what_silos_get
from strategies.fedavg import SiloFedAvg, initial_arrays
from strategies.introductions import gather
from strategies.run_state import RunState
from strategies.session import Session
from strategies.table_columns import learn_columns

HOSTILE, NODE = "silo-1", 3
FAMILIARITY = {"weighting": "familiarity", "epochs": 1}
ARMS = {
    "fedkd-sample": FAMILIARITY,
    "fedkd-class": {**FAMILIARITY, "teachers": "both"},
    "fedkd-moments": {**FAMILIARITY, "familiarity": {"density": "pooled", "dims": 12}},
    "fedkd-logits": {**FAMILIARITY, "mode": "logits", "student": "fresh"},
}


class Watcher:
    def on_point(self, point: Any) -> None:
        pass

    def on_distillation(self, epoch: int, epochs: int) -> None:
        pass


class Remembering(InlineGrid):
    """A grid whose silos answer honestly and once; one of them answers what it is told to."""

    hostile: tuple[str, Any] | None = None

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._honest: dict[tuple[int, str], Any] = {}

    def _answer(self, message: Message, context: Context) -> Any:
        key = (message.metadata.dst_node_id, message.metadata.message_type)
        if key not in self._honest:
            self._honest[key] = super()._answer(message, context).content
        return message

    def pull_messages(self, message_ids: Any) -> Any:
        """Change replies here, in the one thread that hypothesis knows."""
        for message in super().pull_messages(message_ids):
            key = node, kind = message.metadata.dst_node_id, message.metadata.message_type
            content = Records(dict(self._honest[key]))
            if self.hostile and (node, kind) == (NODE, self.hostile[0]):
                content = self.hostile[1](content)
            yield Message(content, reply_to=message)  # of records or an error


class Play:
    """One arm up to the message in question, asked again and again."""

    def __init__(self, study: Any, arm: str, cache: Path, pool: Any) -> None:
        federation = Federation.load(study, 0, cache)
        self.silos = [Silo.of(federation, name, arm) for name in study.silo_names]
        self.context = RunContext.of(federation, arm, ())
        self.grid = make_grid(self.silos, study, {keys.CONFIG_ARM: arm}, pool, Remembering)
        self.model = dict(initial_arrays(self.context).to_torch_state_dict())
        own = self.context.arm.consolidation
        self.own = own
        self.basis = None
        if own and own.uses_densities and self.context.transfer is not None:
            dims = own.familiarity.effective_dims
            images = self.context.transfer.images
            self.basis = make_basis(images, dims=dims, fine=own.uses_moments)

    def session(self) -> Session:
        """Return a session whose silos have introduced themselves."""
        session = Session(self.grid, self.context, Watcher(), "this-run", 5.0)
        gather(session)
        return session

    def describe(self) -> Session:
        return self.session()

    def teacher(self) -> Session:
        session = self.session()
        collect_teachers(session, self.own, self.basis)
        return session

    def densities(self) -> Session:
        """Ask for densities alone, of teachers that were collected before."""
        session = self.session()
        hostile, self.grid.hostile = self.grid.hostile, None
        teachers = collect_teachers(session)
        self.grid.hostile = hostile
        assert self.own is not None
        assert self.basis is not None
        collect_densities(session, teachers, self.own, self.basis)
        return session

    def train(self) -> Session:
        session = self.session()
        session.ledger.open(1)
        strategy = SiloFedAvg(self.context, Watcher(), "r")
        strategy.state.model = self.model
        strategy._train(session, None, StateSpool())
        return session

    def evaluate(self) -> Session:
        session = self.session()
        ask_silos(session, 0, self.model)
        return session

    def compare(self) -> Session:
        session = self.session()
        for name, member in session.roster.items():  # as deployed silos describe themselves
            known = replace(member.known, holds_out=True)
            session.roster[name] = replace(member, description=known)
        state = RunState(curve=[Point(0, 0.5, 1.0, 0, 0, 0.0, 0, 0)])
        state.model = self.model
        ask_what_silos_get(session, state)
        for gets in state.silos_get:
            build(RunRecord, {**RECORD, "silos_get": [gets]})
            assert all(0 <= (gets[model] or 0) <= 1 for model in MODELS)
        assert {"silo-0", "silo-2"} <= {gets["silo"] for gets in state.silos_get}
        assert str(state.notes.get("silos_get", "")).isprintable()
        return session


MODELS = ("own", "global", "adjusted", "fine_tuned", "loses_by")
RECORD: dict[str, Any] = {
    "arm": "a",
    "seed": 0,
    "engine": "inline",
    "curve": (),
    "stopped": "budget",
}
RECORD |= {"exchanges_before_round_1": 0, "max_rounds": 1}
PLAYS: dict[str, tuple[str, str]] = {
    "describe": ("fedavg", keys.DESCRIBE),
    "train": ("fedavg", keys.TRAIN),
    "evaluate": ("fedavg", keys.EVALUATE),
    "compare": ("average", keys.EVALUATE),
    "teacher: models": ("average", keys.TEACHER),
    "teacher: models and densities": ("fedkd-sample", keys.TEACHER),
    "teacher: models and class densities": ("fedkd-class", keys.TEACHER),
    "teacher: models and moments": ("fedkd-moments", keys.TEACHER),
    "teacher: predictions and densities": ("fedkd-logits", keys.TEACHER),
    "densities": ("fedkd-sample", keys.TEACHER),
}


@pytest.fixture(scope="module")
def plays(pool: Any, cache_dir: Path) -> Callable[[str], Play]:
    """Return a function that gives the play of a name, prepared once."""
    import yaml

    from fedkd.config.study_file import parse_study
    from tests.conftest import change, tiny_data

    arms = {name: {"start": "consolidated", "consolidation": c} for name, c in ARMS.items()}
    arms |= {"fedavg": {"start": "random"}, "average": {"start": "average"}}
    changes = {"arms": arms, "rounds/quorum": 0.3, "data/silo_test": 0.2}
    study = parse_study(yaml.safe_dump(change(tiny_data(), changes)))
    made: dict[str, Play] = {}

    def play(name: str) -> Play:
        arm, _ = PLAYS[name]
        if arm not in made:
            made[arm] = Play(study, arm, cache_dir, pool)
        return made[arm]

    return play


def perform(play: Play, name: str) -> Session:
    return getattr(play, name.partition(":")[0])()  # type: ignore[no-any-return]


# Values of any kind, as Flower's records allow them.

INTEGERS = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, 1, -1, 2**70, 10**5000])
FLOATS = st.floats() | st.sampled_from([1e300, -0.0])
SCALARS = (st.booleans(), INTEGERS, FLOATS, st.text(max_size=30), st.binary(max_size=30))
CONFIG_VALUES = st.one_of(*SCALARS, *(st.lists(kind, max_size=12) for kind in SCALARS))
METRIC_VALUES = st.one_of(INTEGERS, FLOATS, st.lists(INTEGERS, max_size=5), st.lists(FLOATS))
HEADERS = st.sampled_from(
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (0x" + "f" * 5000 + ",)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1," * 3276 + ")}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
        "{'descr': [('" + "x" * 5000 + "', '<f4')], 'fortran_order': False, 'shape': (2,)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': ()}",
        "{'descr': '<f4', 'fortran_order': 0, 'shape': [1]}",
        "{'descr': None, 'fortran_order': None, 'shape': None}",
        "\\N{" + "(" * 9000,
    ]
)


def npy(header: str, data: bytes = b"") -> bytes:
    encoded = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(encoded).to_bytes(2, "little") + encoded + data


NUMBERS = st.sampled_from([0, 1, -1, 3e38, -3e38, 1e30, 1e4, 2**40, float("nan"), float("-inf")])
TYPES = st.sampled_from(["<f4", "<f8", "<f2", "<i8", "|u1", "|b1", "<c8", ">f4"])


@st.composite
def filled(draw: Any, shape: tuple[int, ...]) -> Array:
    """Return an array of the expected shape, and of any type and value."""
    with np.errstate(all="ignore"):
        return Array(np.full(shape, draw(NUMBERS)).astype(draw(TYPES)))


RAW = st.builds(
    lambda data, stype: Array("float32", (1,), stype, data),
    st.binary(max_size=60) | st.builds(npy, HEADERS | st.text(max_size=40), st.binary(max_size=8)),
    st.sampled_from(["numpy.ndarray", "", "pickle"]),
)
NAMES = st.text(max_size=8) | st.sampled_from(
    [
        *(keys.INFO, keys.METRICS, keys.SILOS_GET, keys.ARRAYS),
        *(keys.TEACHER_RECORD, keys.FAMILIARITY, keys.LOGITS),
    ]
)
RECORDS = st.one_of(
    st.builds(ConfigRecord, st.dictionaries(NAMES, CONFIG_VALUES, max_size=3)),
    st.builds(MetricRecord, st.dictionaries(NAMES, METRIC_VALUES, max_size=3)),
    st.builds(lambda d: ArrayRecord(d), st.dictionaries(NAMES, RAW, max_size=2)),
)


def spoil(content: Records, data: Any) -> Records:
    """Return an honest reply with a few things in it replaced, added or left out."""
    records: dict[str, Any] = dict(content)
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from([*records, "", "more"]))
        record = records.get(name)
        action = data.draw(st.sampled_from(["record", "drop", "value", "value", "value"]))
        if action == "record" or record is None:
            records[name] = data.draw(RECORDS)
        elif action == "drop" or not len(record):
            records.pop(name)
        else:
            records[name] = spoil_record(record, data)
    return Records(records)


def spoil_record(record: Any, data: Any) -> Any:
    """Return a record with one value that is another, or one more, or one less."""
    values = dict(record)
    key = data.draw(st.sampled_from([*values, "", "more"]))
    if data.draw(st.sampled_from(["set", "set", "set", "drop"])) == "drop" and key in values:
        del values[key]
    elif isinstance(record, ConfigRecord):
        values[key] = data.draw(CONFIG_VALUES)
    elif isinstance(record, MetricRecord):
        values[key] = data.draw(METRIC_VALUES)
    else:
        shape = tuple(values[key].shape) if key in values else (2,)
        values[key] = data.draw(RAW | filled(shape))
    return type(record)(values)


@pytest.mark.parametrize("name", PLAYS)
@given(data=st.data())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_reply_does_more_than_to_be_refused(name: str, data: Any, plays: Any) -> None:
    play, kind = plays(name), PLAYS[name][1]
    play.grid.hostile = (kind, lambda content: spoil(content, data))
    session = perform(play, name)
    play.grid.hostile = None
    entries = session.ledger.quarantined
    assert [entry.silo for entry in entries] in ([], [HOSTILE], [f"node-{NODE}"])
    for entry in entries:
        assert 0 < len(entry.reason) <= MAX_REASON
        assert entry.reason.isprintable()
    assert session.ledger.traffic.bytes_up > 0
    assert {"silo-0", "silo-2"} <= set(session.roster)


@given(data=st.data())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_bad_student_ends_the_run_in_a_sentence(data: Any, plays: Any) -> None:
    """No other silo can take the student's place."""
    play = plays("train")
    session = play.session()
    chosen = choose(
        collect_teachers(session),
        ARM_AT_SILO,
        validation=play.context.validation,
        arch=play.context.arch,
        seed=0,
    )
    honest = play.silos[1].own_model().state
    trained = Records(
        {
            keys.ARRAYS: ArrayRecord(honest),
            keys.METRICS: MetricRecord({keys.NUM_EXAMPLES: 5, keys.LOSS: 1.0}),
            keys.INFO: ConfigRecord({keys.SILO: HOSTILE, keys.RUN_ID: "this-run", keys.ROUND: 0}),
        }
    )
    play.grid._honest[NODE, keys.DISTIL] = trained
    play.grid.hostile = (keys.DISTIL, lambda content: spoil(content, data))
    try:
        sentence = ""
        student = distil_at_silo(session, HOSTILE, chosen)
        assert set(student.state) == set(honest)
    except FedKDError as error:
        sentence = str(error)
    finally:
        play.grid.hostile = None
    assert not sentence or "did not distil on its examples: " in sentence
    assert sentence.isprintable()
    assert len(sentence) < MAX_REASON + 200


COLUMNS = (Column("age"), Column("dose"), Column("ward", ("a", "b")))
SUMS = TableSums(
    60,
    np.array([60.0, 40.0, 58.0]),
    np.array([3e3, -2.0, 0.0]),
    np.array([2e5, 40.0, 0.0]),
    (np.zeros(0), np.zeros(0), np.array([30.0, 28.0])),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), FLOATS, st.text(max_size=9))
    | st.sampled_from([10**400, 1e59, -1e59, "x" * 9999, "\ud800", {"z" * 9999: 1}, {"\ud800": 1}]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


def spoil_sums(content: Records, data: Any) -> Records:
    """Return an honest reply with a few values of its JSON replaced, added or left out."""
    info = dict(content.config_records[keys.INFO])
    told: Any = json.loads(str(info[keys.COLUMNS]))
    for _ in range(data.draw(st.integers(1, 3))):
        entry = data.draw(st.sampled_from(told))
        entry[data.draw(st.sampled_from([*entry, "counts", "more"]))] = data.draw(JSON)
    if data.draw(st.sampled_from([False, False, True])):
        told = data.draw(JSON)
    with contextlib.suppress(ValueError):  # integers that Python does not print
        info[keys.COLUMNS] = json.dumps(told)
    return Records({**content, keys.INFO: ConfigRecord(info)})


@given(st.booleans(), st.sampled_from([spoil, spoil_sums, spoil_sums]), st.data())
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_sums_of_columns_cost_one_refusal_or_end_the_run_before_it_begins(
    plays: Any, server_has_table: bool, spoiling: Any, data: Any
) -> None:
    """Whose columns differ is only known where the server has some of its own."""
    play = plays("describe")
    honest = table_sums.write_reply(COLUMNS, SUMS, least=1)
    for node, silo in zip(play.grid.get_node_ids(), play.silos, strict=True):
        info = {keys.SILO: silo.name, keys.RUN_ID: "this-run", keys.ROUND: 0}
        record = ConfigRecord({**honest[keys.INFO], **info})
        play.grid._honest[node, keys.TABLE_SUMS] = Records({keys.INFO: record})
    empty = Images(torch.zeros(0, len(COLUMNS), dtype=torch.float64), torch.zeros(0).long())
    server = {"columns": COLUMNS} if server_has_table else {}
    context = replace(play.context, test=None, validation=empty, transfer=None, **server)
    play.grid.hostile = (keys.TABLE_SUMS, lambda content: spoiling(content, data))
    sentence = ""
    try:
        learned, _ = learn_columns(play.grid, context, Watcher(), "this-run")
        asked = Records({keys.CONFIG: ConfigRecord({keys.COLUMNS: learned.encoder})})
        encoder = table_sums.read_encoder(asked, COLUMNS)
        assert encoder is not None, "the other silos can use it"
        assert {"age", "dose"} <= set(encoder.names)
    except FedKDError as error:
        sentence = str(error)
    finally:
        play.grid.hostile = None
    assert not sentence or not server_has_table
    assert sentence.isprintable()
    assert len(sentence) < table_sums.MAX_NAME + 300


def _at_silo() -> Any:
    from fedkd.config.study_file import parse_consolidation

    return parse_consolidation({"student": "best"})


ARM_AT_SILO = _at_silo()


# What was seen to end runs, by name, in whole runs.


def with_values(name: str, **values: Any) -> Callable[[Records], Records]:
    """Return a change of one record's values; None leaves a key out."""

    def apply(content: Records) -> Records:
        record = {**content[name]} | {k.replace("_", "-"): v for k, v in values.items()}
        kept = {k: v for k, v in record.items() if v is not None}
        return Records({**content, name: type(content[name])(kept)})

    return apply


def with_array(name: str, make: Callable[[np.ndarray], Array]) -> Callable[[Records], Records]:
    """Return a change of the first array of a record."""

    def apply(content: Records) -> Records:
        arrays = dict(content.array_records[name])
        key = next(iter(arrays))
        arrays[key] = make(arrays[key].numpy())
        return Records({**content, name: ArrayRecord(arrays)})

    return apply


def headed(header: str) -> Callable[[np.ndarray], Array]:
    return lambda a: Array("float32", a.shape, "numpy.ndarray", npy(header, a.tobytes()))


SHAPE = "{'descr': '<f4', 'fortran_order': False, 'shape': (%s)}"
IN_INFO = {
    "an empty text": with_values("info", more=""),
    "an empty list": with_values("info", more=[]),
    "empty bytes": with_values("info", more=b""),
    "an empty name": with_values("info", silo=""),
    "an empty problem": with_values("info", problem=""),
    "a blank problem": with_values("info", problem=" \n\t"),
    "a problem of many lines": with_values("info", problem="x\n" * 9830),
    "a problem that is a list": with_values("info", problem=[1, 2]),
    "a round that is an empty list": with_values("info", server_round=[]),
    "a round that is a list": with_values("info", server_round=[1]),
    "a run that is bytes": with_values("info", run_id=b"this-run"),
    "a name that is a list": with_values("info", silo=["silo-1"]),
}
IN_ARRAYS = {
    "a hexadecimal size": headed(SHAPE % ("0x" + "f" * 4800 + ",")),
    "thousands of dimensions": headed(SHAPE % ("1," * 3276)),
    "weights near the greatest": lambda a: Array(np.full(a.shape, 3e38, np.float32)),
    "one weight near the least": lambda a: Array(
        np.where(np.arange(a.size) > 0, a.ravel(), -3e38).reshape(a.shape).astype(np.float32)
    ),
}
INTRODUCTIONS = {
    **IN_INFO,
    "an architecture that is a list": with_values("info", architecture=["mlp"]),
    "no architecture": with_values("info", architecture=None),
    "class counts that are empty": with_values("info", class_counts=[]),
    "class counts that are text": with_values("info", class_counts="5555555555"),
    "class counts that are true": with_values("info", class_counts=[True] * 10),
    "a size of thousands of digits": with_values("info", num_examples=10**5000),
}
UPDATES = {
    **IN_INFO,
    **{name: with_array(keys.ARRAYS, change) for name, change in IN_ARRAYS.items()},
    "metrics of nothing": lambda content: Records({**content, "metrics": MetricRecord()}),
    "a size that is an empty list": with_values("metrics", num_examples=[]),
}
TEACHERS = {
    **IN_INFO,
    **{name: with_array(keys.TEACHER_RECORD, change) for name, change in IN_ARRAYS.items()},
    "a model that is text": lambda content: Records(
        {**content, keys.TEACHER_RECORD: ConfigRecord({"model": "none"})}
    ),
    "densities that are text": lambda content: Records(
        {**content, keys.FAMILIARITY: ConfigRecord({"density": "none"})}
    ),
}
CASES = [
    *((keys.DESCRIBE, name, change) for name, change in INTRODUCTIONS.items()),
    *((keys.TRAIN, name, change) for name, change in UPDATES.items()),
    *((keys.TEACHER, name, change) for name, change in TEACHERS.items()),
]


@pytest.mark.parametrize(
    ("kind", "change"),
    [(kind, change) for kind, _, change in CASES],
    ids=[f"{kind}: {name}" for kind, name, _ in CASES],
)
def test_what_ended_runs_costs_one_refusal(kind: str, change: Any, plays: Any) -> None:
    (name,) = (n for n in ("describe", "train", "teacher: models") if PLAYS[n][1] == kind)
    play = plays(name)
    play.grid.hostile = (kind, change)
    session = perform(play, name)
    play.grid.hostile = None
    (entry,) = session.ledger.quarantined
    assert entry.silo == (f"node-{NODE}" if kind == keys.DESCRIBE else HOSTILE)
    assert 0 < len(entry.reason) <= MAX_REASON
    assert entry.reason.isprintable()
    used = {"silo-0", "silo-2"} if kind != keys.DESCRIBE else set()
    assert session.ledger.traffic.used == used
    assert session.ledger.traffic.failed == (kind != keys.DESCRIBE)


def test_errors_of_any_length_are_one_short_line(plays: Any) -> None:
    play = plays("train")
    for reason in ("x" * 9830, "\n" * 9830, "", "a\nb\n\x1b[31mred\n\n", None):
        error = Error(2, reason)  # type: ignore[arg-type]
        play.grid.hostile = (keys.TRAIN, lambda _, error=error: error)
        session = perform(play, "train")
        (entry,) = session.ledger.quarantined
        assert entry.reason.startswith("it failed: ")
        assert len(entry.reason) <= MAX_REASON
        assert entry.reason.isprintable()
        assert "\x1b" not in entry.reason
    play.grid.hostile = None


@pytest.mark.parametrize("answer", [None, "a text", 7, Records()])
def test_an_app_that_returns_no_message_fails(answer: Any, run_arm: Any, make_study: Any) -> None:
    """Flower's own apps may return anything: see ``InlineGrid``."""
    from flwr.clientapp import ClientApp

    from fedkd.engines import inline

    study = make_study({"rounds/max": 1})
    app_call = ClientApp.__call__

    def call(self: Any, message: Message, context: Any) -> Any:
        hostile = message.metadata.dst_node_id == NODE
        train = message.metadata.message_type == keys.TRAIN
        return answer if hostile and train else app_call(self, message, context)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inline.ClientApp, "__call__", call)
        ran = run_arm(study, "fedavg")
    assert ran.refused == [(HOSTILE, 1)]
    assert "not a Message" in ran.reasons


def test_constant_masks_of_a_model_pass_and_nothing_else_beyond_all_bounds() -> None:
    least = torch.finfo(torch.float32).min
    like = {"mask": torch.tensor([[0.0, float("-inf")], [0.0, least]]), "count": torch.tensor(3)}
    sent = ArrayRecord(like)
    for key, tensor in read_state(sent, like).items():
        assert torch.equal(tensor, like[key])
    for value in (float("inf"), float("nan"), 2e18, -3e38):
        for place in ((0, 0), (0, 1), (1, 1)):
            bad = like["mask"].clone()
            bad[place] = value
            with pytest.raises(RefusedError, match="'mask' has values that are"):
                read_state(ArrayRecord({**like, "mask": bad}), like)
    fine = {**like, "mask": torch.tensor([[1e18, float("-inf")], [-1e18, 5.0]])}
    assert torch.equal(read_state(ArrayRecord(fine), like)["mask"], fine["mask"])


@given(
    st.one_of(CONFIG_VALUES, st.none(), st.text(), st.lists(st.lists(INTEGERS))),
    st.integers(10, 300),
)
def test_any_value_prints_as_a_short_line(value: Any, most: int) -> None:
    text = printable(value, most)
    assert text.isprintable()
    assert len(text) <= most


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_numbers_that_are_not_finite_are_refused_in_every_precision(
    dtype: torch.dtype, bad: float
) -> None:
    """The bound is greater than any number of 16 bits, which it must not become infinite for."""
    like = {"weight": torch.zeros(3, dtype=dtype)}
    sent = ArrayRecord({"weight": torch.tensor([0.0, bad, 1.0], dtype=dtype)})
    with pytest.raises(RefusedError, match="not finite"):
        read_state(sent, like)
