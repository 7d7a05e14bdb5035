"""What a curious server takes from a silo: it sends messages of its own making, and other studies.

Each attack recovered private images from a silo that shared densities and moments.
"""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Message, RecordDict
from torch import Tensor

from clients.handlers import app
from fedkd.config.study_file import parse_study
from fedkd.data.images import content_hash
from fedkd.deploy.answers import SpentError, answer_once, ledger_path
from fedkd.deploy.check import SiloCheck
from fedkd.deploy.silo_file import load_silo_file
from fedkd.distillation.density.basis import (
    NOTHING_KNOWN,
    Basis,
    FeatureBasis,
    PatchBasis,
    fit_basis,
)
from fedkd.distillation.density.points import REACH
from fedkd.federation.deployed_data import draw_transfer
from fedkd.messages import keys, teacher
from fedkd.messages.teacher import Wanted
from fedkd.models.build import Shape, build_model
from fedkd.models.card import ModelCard, save_model
from fedkd.models.state import copy_state
from fedkd.training.compute import Compute

GAUSSIAN: dict[str, Any] = {"weighting": "familiarity", "teachers": "both"}
POOLED = {**GAUSSIAN, "familiarity": {"density": "pooled", "dims": 5}}
SHAPE = Shape(3, 1, 8)
PATCHES = {**GAUSSIAN, "familiarity": {"density": "pooled", "basis": "patches", "filters": 4}}


class Curious:
    """A server that sends one silo, the north, what it likes."""

    def __init__(self, field: Any) -> None:
        self.field = field

    def use(self, consolidation: dict[str, Any], **changes: Any) -> None:
        """Send another study from now on."""
        arm = {"start": "consolidated", "consolidation": consolidation}
        self.field.study = {"arms": {"fedkd-attack": arm}, **changes}

    @property
    def settings(self) -> Any:
        return parse_study(self.field.study_text()).arms["fedkd-attack"].consolidation

    @property
    def transfer(self) -> Tensor:
        study = parse_study(self.field.study_text())
        drawn = draw_transfer(study, 0, self.field.transfer("server.npz"))
        assert drawn is not None
        return drawn.images

    def ask(
        self,
        *,
        images: Tensor | None = None,
        basis: Basis | None = None,
        wanted: Wanted | None = None,
    ) -> Message:
        """Ask as the study says, but for what is given."""
        images = self.transfer if images is None else images
        question = teacher.write_question(
            wanted or Wanted.by(keys.MODE_NONE, self.settings),
            transfer=images,
            basis=basis or fit_basis(images, self.settings, SHAPE, Compute()),
            arch="cnn",
            deployed=True,
        )
        message = Message(question.content("r"), 2, question.kind)
        message.metadata.__dict__["_message_id"] = "m"
        return app(message, self.field.context(2, "north", "fedkd-attack"))

    def told(self, **question: Any) -> dict[str, np.ndarray[Any, Any]]:
        reply = self.ask(**question)
        assert not reply.has_error(), reply.error.reason
        record = reply.content.array_records[keys.FAMILIARITY]
        return {name: array.numpy() for name, array in record.items()}

    def refused(self, **question: Any) -> str:
        """Return why nothing was sent; it is in the audit log."""
        reply = self.ask(**question)
        assert reply.has_error()
        entry = self.field.audit("north")[-1]
        assert entry["sent"] == {}
        assert entry["refused"] == reply.error.reason
        return str(reply.error.reason)

    def save(self, images: np.ndarray[Any, Any], labels: list[int]) -> None:
        np.savez(self.field.root / "north" / "data.npz", images=images, labels=np.array(labels))


@pytest.fixture
def curious(field: Callable[..., Any]) -> Callable[..., Curious]:
    def make(changes: dict[str, Any] | None = None) -> Curious:
        return Curious(field({"north": changes or {}}))

    return make


def draw(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["knn", "", "anything"])
def test_distances_to_neighbours_are_not_shared(curious: Any, kind: str) -> None:
    """A transfer image that is a private one has distance 0, so a guess could be confirmed."""
    server = curious()
    server.use({**GAUSSIAN, "familiarity": {"density": "knn"}})
    wanted = replace(Wanted.by(keys.MODE_NONE, server.settings), kind=kind)
    assert "noise with a privacy account" in server.refused(wanted=wanted)
    assert not (server.field.root / "north" / "audit.jsonl.answers").exists()


def test_features_of_a_model_that_the_server_sends_are_not_used(curious: Any) -> None:
    server = curious()
    server.use(GAUSSIAN)
    model = build_model("cnn", SHAPE, seed=0)
    basis = FeatureBasis(torch.zeros(4), torch.ones(2, 4), model, Compute())
    assert "features of a model" in server.refused(basis=basis)


def test_what_the_study_does_not_ask_for_is_not_shared(curious: Any) -> None:
    server = curious()
    server.use(POOLED)
    wanted = Wanted(keys.MODE_NONE, keys.DENSITY_CLASS, "gaussian")
    assert "not those of the study's arm" in server.refused(wanted=wanted)


def test_a_study_makes_the_silo_read_no_file_of_its_host(curious: Any) -> None:
    """What a study cannot name, no sentence about it can quote to the server."""
    server = curious({"approve": "ask"})
    secret = server.field.root / "passwords.json"
    secret.write_text('{"a secret of the host": [1]}')
    server.field.study = {"partition": {"scheme": "indices", "path": str(secret)}}
    reply = server.field.ask("north", keys.DESCRIBE, {keys.TRANSFER_HASH: keys.NO_HASH})
    assert "partition: names: are missing" in reply.error.reason
    assert "secret" not in reply.error.reason


def test_no_model_and_no_round_that_the_study_does_not_have_is_shared(curious: Any) -> None:
    """The silo's owner has approved the study, and nothing beside it."""
    server = curious()
    server.use(LOGITS)
    asked = "the study's arm fedkd-attack does not ask for weights of its model"
    assert server.refused(wanted=Wanted(keys.MODE_WEIGHTS)) == asked
    field = server.field
    field.study = {"arms": {"fedavg": {"start": "random"}}}
    wanted = {keys.MODE: keys.MODE_WEIGHTS, keys.DENSITY: keys.DENSITY_NONE}
    reply = field.ask("north", keys.TEACHER, wanted, arm="fedavg")
    assert reply.error.reason == "the study's arm fedavg does not ask for weights of its model"
    model = ArrayRecord(copy_state(build_model("cnn", SHAPE, seed=0)))
    records = RecordDict({keys.ARRAYS: model})
    for number, answers in ((0, False), (1, True), (2, False)):
        reply = field.ask("north", keys.TRAIN, {keys.ROUND: number}, "fedavg", records)
        assert reply.has_error() != answers
    assert reply.error.reason == "the study's arm fedavg has rounds 1 to 1, not 2"


@pytest.mark.parametrize("settings", [GAUSSIAN, POOLED, PATCHES])
def test_the_only_image_of_a_class_leaves_no_trace(curious: Any, settings: dict[str, Any]) -> None:
    """The answer is the same, bit for bit, whatever the images of small classes are."""
    answers = []
    for seed in (1, 2):
        server = curious({"audit": f"{seed}.jsonl"})
        server.use(settings)
        images = np.concatenate([draw(30), draw(1, seed), draw(1, seed).repeat(9, 0)])
        # One image of class 1; nine of class 2, which are copies of one.
        server.save(images, [0] * 30 + [1] + [2] * 9)
        answers.append(server.told())
    first, second = answers
    assert all(np.array_equal(first[name], second[name]) for name in first)
    if keys.LOG_DENSITY in first:
        assert (first[keys.LOG_DENSITY][:, 1:] == np.float32(NOTHING_KNOWN)).all()
    else:
        assert first[keys.MOMENT_COUNTS].tolist() == [30, 0, 0]


def test_one_image_moves_a_class_mean_no_further_than_documented(curious: Any) -> None:
    means, count, dims = [], 20, 5
    for seed, last in ((1, draw(1, 5)), (2, np.full((1, 8, 8), 255, np.uint8))):
        server = curious({"audit": f"{seed}.jsonl"})
        server.use(POOLED)
        images = np.concatenate([draw(count - 1), last, draw(20, 6)])
        server.save(images, [0] * count + [1] * 10 + [2] * 10)
        means.append(server.told()[keys.MOMENT_MEANS][0])
    moved = np.linalg.norm(means[0] - means[1])
    assert 0 < moved <= 2 * REACH * dims**0.5 / count


@pytest.mark.parametrize("settings", [GAUSSIAN, POOLED, PATCHES])
def test_a_basis_of_the_servers_choice_is_refused(curious: Any, settings: dict[str, Any]) -> None:
    """Components or filters may be chosen so that a single image stands out."""
    server = curious()
    server.use(settings)
    honest = fit_basis(server.transfer, server.settings, SHAPE, Compute())
    assert honest is not None
    bent = honest.components.clone()
    bent[0] *= 1.001
    chosen = [replace(honest, components=bent), replace(honest, mean=honest.mean + 0.01)]
    chosen.append(replace(honest, components=honest.components[:1]))
    chosen.append(replace(honest, components=honest.components * float("nan")))
    if isinstance(honest, PatchBasis):
        bank = honest.filters
        chosen.append(replace(honest, filters=replace(bank, kernels=-bank.kernels)))
        chosen.append(replace(honest, filters=replace(bank, offset=bank.offset + 1)))
    else:
        chosen.append(replace(honest, side=4))
    for basis in chosen:
        assert "basis" in server.refused(basis=basis)
    rounded = replace(honest, components=honest.components * (1 + 1e-6))
    given, own = server.told(basis=rounded), server.told()
    assert all(np.array_equal(given[name], own[name]) for name in own)


def test_an_honest_basis_of_another_processor_is_recognized(curious: Any) -> None:
    """Other rounding may turn components, those of nearly equal eigenvalues by any angle."""
    for index, settings in enumerate((GAUSSIAN, POOLED, PATCHES)):
        audit = f"{index}.jsonl"
        server = curious({"audit": audit, "share": {"max_questions": 1}})
        server.use(settings)
        honest = fit_basis(server.transfer, server.settings, SHAPE, Compute())
        assert honest is not None
        own = server.told()
        size = len(honest.components)
        assert size >= 5
        rotation = torch.linalg.qr(torch.randn(size, size)).Q
        turned = replace(honest, components=rotation @ honest.components)
        flipped = replace(honest, components=-honest.components)
        for basis, matrix in ((turned, rotation), (flipped, -torch.eye(size))):
            given = server.told(basis=basis)
            if keys.LOG_DENSITY in own:
                assert np.array_equal(given[keys.LOG_DENSITY], own[keys.LOG_DENSITY])
                continue
            # The moments are those of the server's basis, which all silos then have in common.
            turn, rows = matrix.numpy(), np.triu_indices(size)
            second = np.zeros((size, size), np.float32)
            second[rows] = own[keys.MOMENT_SECOND]
            second = turn @ (second + np.triu(second, 1).T) @ turn.T
            means = own[keys.MOMENT_MEANS] @ turn.T
            np.testing.assert_allclose(given[keys.MOMENT_SECOND], second[rows], atol=1e-3)
            np.testing.assert_allclose(given[keys.MOMENT_MEANS], means, atol=1e-3)
            assert given[keys.MOMENT_COUNTS].tolist() == own[keys.MOMENT_COUNTS].tolist()
        assert len(list((server.field.root / "north").glob(f"{audit}.answers/*.npz"))) == 1


def test_a_hundred_questions_get_three_answers(curious: Any) -> None:
    """Other settings of the basis, on the approved set: each is a view of the same images."""
    server = curious({"share": {"max_questions": 3}})
    folder = server.field.root / "north" / "audit.jsonl.answers"
    for dims in range(1, 4):
        server.use({**GAUSSIAN, "familiarity": {"dims": dims}})
        assert server.told()
    for dims in range(4, 6):
        server.use({**GAUSSIAN, "familiarity": {"dims": dims}})
        assert "share.max_questions" in server.refused()
    # A hundred in all, each new by one number. The ledger alone is asked, without messages.
    file = load_silo_file(server.field.root / "north" / "silo.yaml")
    for number in range(100 - 5):
        with pytest.raises(SpentError, match=r"share\.max_questions"):
            answer_once(file, {"dims": number}, lambda: pytest.fail("computed"))
    assert len(list(folder.iterdir())) == 3 + 1  # and the lock
    server.save(draw(40, 7), [n % 3 for n in range(40)])  # does not begin the count anew
    server.use({**GAUSSIAN, "familiarity": {"dims": 3}})
    assert "share.max_questions" in server.refused()


LOGITS: dict[str, Any] = {"mode": "logits", "student": "fresh", "weighting": "equal"}


def test_a_model_is_not_copied_by_predictions_on_chosen_images(curious: Any) -> None:
    """Predictions on many images make a copy, and tell members; approved sets are few."""
    server = curious({"share": {"teacher": "logits", "max_questions": 2}})
    server.use(LOGITS)
    wanted = Wanted(keys.MODE_LOGITS)

    def predictions() -> np.ndarray[Any, Any]:
        reply = server.ask(wanted=wanted)
        assert not reply.has_error(), reply.error.reason
        return reply.content.array_records[keys.TEACHER_RECORD][keys.LOGITS].numpy()

    chosen = torch.from_numpy(draw(40, 3))[:, None]
    assert content_hash(chosen) in server.refused(wanted=wanted, images=chosen)
    first = predictions()
    file = load_silo_file(server.field.root / "north" / "silo.yaml")
    own = server.field.root / "north" / "own.safetensors"
    save_model(own, copy_state(build_model("cnn", SHAPE, seed=77)), ModelCard("cnn", SHAPE))
    second = predictions()  # of another model: the second question
    assert not np.array_equal(first, second)
    save_model(own, copy_state(build_model("cnn", SHAPE, seed=78)), ModelCard("cnn", SHAPE))
    assert "2 different questions about predictions" in server.refused(wanted=wanted)
    save_model(own, copy_state(build_model("cnn", SHAPE, seed=77)), ModelCard("cnn", SHAPE))
    assert np.array_equal(predictions(), second)
    # Densities are counted by themselves.
    server.use(GAUSSIAN)
    assert server.told()
    assert len(list(ledger_path(file).glob("*.npz"))) == 3


def test_who_shares_the_weights_predicts_on_any_images(curious: Any) -> None:
    server = curious({"share": {"teacher": "weights", "max_questions": 1}})
    server.use(LOGITS)
    for seed in range(3):
        images = torch.from_numpy(draw(40, seed))[:, None]
        assert not server.ask(wanted=Wanted(keys.MODE_LOGITS), images=images).has_error()


def test_the_same_question_gets_the_same_answer(curious: Any) -> None:
    server = curious({"share": {"max_questions": 1}})
    server.use(GAUSSIAN)
    first, second = (server.ask().content.array_records[keys.FAMILIARITY] for _ in range(2))
    assert first[keys.LOG_DENSITY].data == second[keys.LOG_DENSITY].data
    folder = server.field.root / "north" / "audit.jsonl.answers"
    (stored,) = folder.glob("*.npz")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(stored.stat().st_mode) == 0o600
    # It is read, not computed again: what is stored is what is sent.
    with np.load(stored) as arrays:
        changed = {name: arrays[name] + 1 for name in arrays.files}
    np.savez(stored, **changed)
    assert np.array_equal(server.told()[keys.LOG_DENSITY], changed[keys.LOG_DENSITY])
    stored.write_bytes(stored.read_bytes()[:100])
    assert "own log" in server.refused()


def test_a_transfer_set_that_nobody_approved_is_refused(curious: Any) -> None:
    server = curious()
    for settings in (GAUSSIAN, POOLED):
        server.use(settings)
        chosen = torch.from_numpy(draw(40, 3))[:, None]
        reason = server.refused(images=chosen)
        assert content_hash(chosen) in reason
        assert "approve.transfer" in reason
    assert not (server.field.root / "north" / "audit.jsonl.answers").exists()


def test_noise_is_not_approved_by_a_source(curious: Any) -> None:
    server = curious({"approve": "any"})
    source = server.field.transfer("own.npz")
    server.field.write("north", {"approve": "any", "transfer": source})
    server.use(GAUSSIAN)
    assert server.told()
    server.use(GAUSSIAN, data={**data_of(server), "transfer": {"source": "noise", "size": 40}})
    assert "has not approved" in server.refused()


def test_a_set_is_approved_once_by_hand(curious: Any) -> None:
    server = curious({"approve": "any"})
    server.use(GAUSSIAN)
    assert "--accept" in server.refused()
    file = load_silo_file(server.field.root / "north" / "silo.yaml")
    study = parse_study(server.field.study_text())
    for accept, level in ((False, "note"), (True, "ok"), (False, "ok")):
        found = {each.name: each for each in SiloCheck(file, study, accept=accept).findings()}
        assert found["approval"].level == level
        assert content_hash(server.transfer) in found["approval"].value
    assert server.told()
    approvals = Path(f"{file.audit}.approved.json")
    assert stat.S_IMODE(approvals.stat().st_mode) == 0o600
    assert json.loads(approvals.read_text()) == {"transfer": [content_hash(server.transfer)]}


def data_of(server: Curious) -> dict[str, Any]:
    read: dict[str, Any] = parse_study(server.field.study_text()).to_dict()["data"]
    return read


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a module that can be imported, and that only this test imports."""
    (tmp_path / "of_the_server.py").write_text(
        "import torch\n\n\ndef net(num_classes, in_channels, image_size):\n    "
        "return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))\n"
        "\n\ndef loss(*args):\n    return args\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "of_the_server", raising=False)
    return "of_the_server"


AT_SILO = {"source": "npz:/test.npz", "validation": 0.5, "transfer": {"source": "student-silo"}}
CODE = {
    "model": {"model": {"arch": "of_the_server:net"}},
    "silo": {"model": {"arch": "cnn", "per_silo": {"north": "of_the_server:net"}}},
    "loss": {"rounds": {"max": 1, "local_loss": "of_the_server:loss"}},
    "arm": {"arms": {"fedavg": {"start": "random", "arch": "of_the_server:net"}}},
}


@pytest.mark.parametrize("changes", CODE.values(), ids=list(CODE))
def test_a_study_makes_a_silo_import_nothing(
    field: Any, module: str, changes: dict[str, Any]
) -> None:
    made = field()
    made.study = changes
    reply = made.ask("north", keys.DESCRIBE, {"transfer-hash": "none"}, "fedavg")
    assert reply.has_error()
    assert "of_the_server:" in reply.error.reason
    assert "silo.yaml" in reply.error.reason or "deployed silos do not run" in reply.error.reason
    assert module not in sys.modules
    assert made.audit("north")[-1]["refused"] == reply.error.reason


def test_the_check_names_the_code_and_imports_nothing(field: Any, module: str) -> None:
    made = field()
    made.study = CODE["silo"]
    file = load_silo_file(made.root / "north" / "silo.yaml")
    found = {each.name: each for each in SiloCheck(file, parse_study(made.study_text())).findings()}
    assert found["code"].level == "broken"
    assert "model.per_silo.north: of_the_server:net" in found["code"].value
    assert module not in sys.modules


def test_what_only_the_server_uses_is_not_imported(field: Any, module: str) -> None:
    made = field()
    own = {"method": f"{module}:loss", "weighting": f"{module}:loss"}
    made.study = {"arms": {"fedkd": {"start": "consolidated", "consolidation": own}}}
    assert not made.ask("north", keys.DESCRIBE, {"transfer-hash": "none"}).has_error()
    assert module not in sys.modules


def test_a_silo_that_distils_imports_no_method(field: Any, module: str) -> None:
    made = field()
    own = {"method": f"{module}:loss", "student": "best"}
    made.study = {
        "data": {**data_of(Curious(made)), **AT_SILO},
        "arms": {"fedkd": {"start": "consolidated", "consolidation": own}},
    }
    reply = made.ask("north", keys.DESCRIBE, {"transfer-hash": "none"})
    assert f"{module}:loss" in reply.error.reason
    assert module not in sys.modules


def test_code_that_the_silo_allows_is_imported(field: Any, module: str) -> None:
    made = field(
        {"north": {"allow": [f"{module}:net"], "model": None, "share": {"teacher": "none"}}}
    )
    made.study = CODE["model"]
    config: dict[str, Any] = {"transfer-hash": "none"}
    assert not made.ask("north", keys.DESCRIBE, config, "fedavg").has_error()
    record = ArrayRecord(build_model(f"{module}:net", Shape(3, 1, 8), seed=0).state_dict())
    assert module in sys.modules
    reply = made.ask("north", keys.EVALUATE, {}, "fedavg", RecordDict({keys.ARRAYS: record}))
    assert not reply.has_error()
