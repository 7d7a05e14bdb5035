"""silo.yaml, what it names, and the look at both before a silo starts."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from fedkd.config import Study
from fedkd.config.study_file import parse_study
from fedkd.deploy.check import SiloCheck
from fedkd.deploy.holdings import read_holdings, read_own_model
from fedkd.deploy.keys import make_server_keys
from fedkd.deploy.link import Address, check_link, judge_certificate, judge_clock
from fedkd.deploy.silo_file import SiloFile, load_silo_file
from fedkd.deploy.stamp import stamp_path
from fedkd.errors import UserError
from fedkd.models.build import Shape, build_model
from fedkd.models.card import ModelCard, save_model
from fedkd.models.downloads import check_download
from fedkd.models.state import copy_state

SHAPE = Shape(3, 1, 8)
CLASSES = ("red", "green", "blue")
Write = Callable[..., SiloFile]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes a silo with 30 images and a model, with changes to its file."""

    def make(changes: dict[str, Any] | None = None, *, classes: tuple[str, ...] = ()) -> SiloFile:
        images = np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)
        np.savez(tmp_path / "data.npz", images=images, labels=np.arange(30) % 3)
        state = copy_state(build_model("mlp", SHAPE, seed=0))
        save_model(tmp_path / "own.safetensors", state, ModelCard("mlp", SHAPE, classes))
        data = {
            "name": "north",
            "data": "npz:data.npz",
            "labels": {"0": "blue", "1": "red", "2": "green"},
            "model": {"checkpoint": "own.safetensors"},
            "share": {"teacher": "weights"},
            "audit": "log/audit.jsonl",
            **(changes or {}),
        }
        path = tmp_path / "silo.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in data.items() if v is not None}))
        return load_silo_file(path)

    return make


def make_field(changes: dict[str, Any] | None = None) -> Study:
    data = {
        "name": "f",
        "data": {"classes": list(CLASSES), "channels": 1, "image_size": 8},
        "partition": {"scheme": "deployed", "names": ["north", "south"]},
        "model": {"arch": "mlp"},
        "targets": [0.5],
        "arms": {"fedavg": {"start": "random"}},
        **(changes or {}),
    }
    return parse_study(yaml.safe_dump(data))


def test_paths_are_seen_from_the_files_own_folder(write: Write, tmp_path: Path) -> None:
    own = {"checkpoint": "own.safetensors", "weights": "network.pt"}
    file = write({"transfer": "npz:t.npz", "model": own})
    assert file.data == f"npz:{tmp_path}/data.npz"
    assert file.transfer == f"npz:{tmp_path}/t.npz"
    assert file.audit == f"{tmp_path}/log/audit.jsonl"
    assert file.model is not None
    assert file.model.checkpoint == f"{tmp_path}/own.safetensors"
    assert file.weights == f"{tmp_path}/network.pt"


def test_a_silo_shares_little_unless_it_says_so(write: Write) -> None:
    share = write().share
    assert not share.densities
    assert not share.class_counts
    assert share.min_samples == 10


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"share": {"teacher": "all"}}, "share.teacher"),
        ({"share": {}}, "share.teacher: is missing"),
        ({"share": {"teacher": "none", "density": True}}, "did you mean 'densities'"),
        ({"audit": None}, "audit: is missing"),
        ({"name": "a/b"}, "name"),
        ({"model": None}, "must be none for a silo without a model"),
        ({"model": {"weights": "network.pt"}}, "must be none for a silo without a model"),
        ({"model": {}}, "model: checkpoint: is missing"),
        ({"model": {"weights": "network.pt", "arch": "mlp"}}, "model: checkpoint: is missing"),
        (
            {"model": {"checkpoint": "own.pt", "weights": "IMAGENET1K_V1"}},
            "model: weights: IMAGENET1K_V1 is not a file of weights",
        ),
        (
            {"local_dp": {"clipping_norm": 1, "sensitivity": 1, "epsilon": 1, "delta": 0.1}},
            "use logits or none",
        ),
        (
            {"local_dp": {"clipping_norm": 1, "sensitivity": 0.01, "epsilon": 1, "delta": 0.1}},
            "sensitivity: 0.01 is below clipping_norm",
        ),
        ({"approve": {"transfer": ["abc"]}}, "approve.transfer"),
        ({"allow": ["no function"]}, "allow"),
    ],
)
def test_a_wrong_file_is_refused_with_its_key(
    write: Write, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as caught:
        write(changes)
    assert said in str(caught.value)
    assert "silo.yaml" in str(caught.value)


def test_labels_take_their_places_among_the_studys_classes(write: Write) -> None:
    held = read_holdings(write(), classes=CLASSES, channels=1, image_size=8)
    # Its 0, 1, 2 are blue, red, green, which the study counts 2, 0, 1.
    assert held.train.labels[:4].tolist() == [2, 0, 1, 2]
    assert held.shape == SHAPE


def test_images_come_in_the_studys_shape(write: Write) -> None:
    held = read_holdings(write(), classes=CLASSES, channels=3, image_size=16)
    assert held.train.images.shape == (30, 3, 16, 16)


def test_a_label_without_a_place_is_refused(write: Write) -> None:
    file = write({"labels": {"0": "blue", "1": "red"}})
    with pytest.raises(UserError, match="class '2' have no place"):
        read_holdings(file, classes=CLASSES)


def test_a_mapping_of_no_class_is_refused(write: Write) -> None:
    file = write({"labels": {"0": "blue", "1": "red", "2": "green", "purple": "red"}})
    with pytest.raises(UserError, match="no class 'purple'"):
        read_holdings(file, classes=CLASSES)


@pytest.mark.parametrize("own", [("0", "1", "2"), ("1", "2", "purple")])
def test_a_model_of_other_classes_or_another_order_is_refused(
    own: tuple[str, ...], write: Write
) -> None:
    file = write(classes=own)
    with pytest.raises(UserError, match=r"predicts .* classes that differ cannot be averaged"):
        read_own_model(file, SHAPE, CLASSES)
    named = {"0": "blue", "1": "red", "2": "green"}
    arch, _ = read_own_model(file, SHAPE, [named.get(name, name) for name in own])
    assert arch == "mlp"


def test_a_model_of_another_architecture_or_with_nan_is_refused(
    write: Write, tmp_path: Path
) -> None:
    file = write({"model": {"checkpoint": "own.safetensors", "arch": "cnn"}})
    with pytest.raises(UserError, match="says that it is mlp"):
        read_own_model(file, SHAPE, CLASSES)
    file = write()
    state = copy_state(build_model("mlp", SHAPE, seed=0))
    next(iter(state.values())).view(-1)[0] = torch.nan
    save_model(tmp_path / "own.safetensors", state, ModelCard("mlp", SHAPE))
    with pytest.raises(UserError, match="not finite"):
        read_own_model(file, SHAPE, CLASSES)


def test_a_silo_downloads_weights_only_if_its_file_says_so(write: Write) -> None:
    for allowed in (False, True):
        with write({"download": allowed}).permissions():
            if allowed:
                check_download("model.weights: W", "fetch it")
                continue
            with pytest.raises(UserError, match=r"W is not on this host.*; fetch it, or set"):
                check_download("model.weights: W", "fetch it")
    check_download("model.weights: W", "fetch it")


def levels(file: SiloFile, study: Study | None) -> dict[str, str]:
    return {finding.name: finding.level for finding in SiloCheck(file, study).findings()}


def test_a_ready_silo_has_no_problem(write: Write) -> None:
    found = levels(write(), make_field())
    assert "broken" not in found.values()
    assert found["model"] in ("ok", "note")
    assert found["study"] == "ok"


@pytest.mark.parametrize(
    ("changes", "study", "name"),
    [
        ({"name": "east"}, {}, "study"),
        ({"data": "npz:nowhere.npz"}, {}, "data"),
        ({"share": {"teacher": "weights", "min_samples": 100}}, {}, "data"),
        ({"labels": {}}, {}, "labels"),
        ({}, {"model": {"arch": "cnn"}}, "model"),
        ({"model": {"checkpoint": "none.safetensors"}}, {}, "model"),
        ({"device": "cuda:77"}, {}, "device"),
    ],
)
def test_what_would_fail_is_a_problem(
    write: Write, changes: dict[str, Any], study: dict[str, Any], name: str
) -> None:
    assert levels(write(changes), make_field(study))[name] == "broken"


def test_what_an_arm_asks_for_in_vain_is_noted(write: Write) -> None:
    study = make_field(
        {
            "data": {
                "classes": list(CLASSES),
                "channels": 1,
                "image_size": 8,
                "transfer": {"source": "noise", "size": 30},
            },
            "arms": {
                "fedavg": {"start": "random"},
                "fedkd": {
                    "start": "consolidated",
                    "consolidation": {"weighting": "familiarity"},
                },
            },
        }
    )
    (found,) = [
        finding
        for finding in SiloCheck(write({"share": {"teacher": "logits"}}), study).findings()
        if finding.name == "sharing"
    ]
    assert found.level == "note"
    assert "arms.fedkd asks for the weights" in found.value
    assert "arms.fedkd asks for densities" in found.value


@pytest.mark.parametrize(
    ("ahead", "level"), [(0, "ok"), (4, "ok"), (30, "broken"), (-200, "ok"), (-400, "broken")]
)
def test_a_clock_is_judged_by_what_flower_accepts(ahead: int, level: str) -> None:
    assert judge_clock("Tue, 24 Nov 2026 12:00:00 GMT", 1_795_521_600 + ahead).level == level


def test_a_certificate_about_to_end_is_noted() -> None:
    assert judge_certificate(1e9 + 100 * 86_400, 1e9).level == "ok"
    assert judge_certificate(1e9 + 3 * 86_400, 1e9).level == "note"


class Well(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the library's name
        pass


@pytest.fixture
def server(tmp_path: Path) -> Any:
    """A TLS server on the loopback interface, certified by an authority in ``keys``."""
    make_server_keys(tmp_path / "keys", ["localhost"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "keys" / "server.pem", tmp_path / "keys" / "server.key")
    made = HTTPServer(("127.0.0.1", 0), Well)
    made.socket = context.wrap_socket(made.socket, server_side=True)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield Address("127.0.0.1", made.server_port)
    made.shutdown()
    made.server_close()
    thread.join()


def test_a_superlink_is_asked_over_tls(server: Address, tmp_path: Path) -> None:
    found = list(check_link(server, tmp_path / "keys" / "ca.pem", insecure=False))
    assert [(finding.name, finding.level) for finding in found] == [
        ("superlink", "ok"),
        ("certificate", "ok"),
        ("clock", "ok"),
    ]


def test_another_authority_is_a_problem(server: Address, tmp_path: Path) -> None:
    make_server_keys(tmp_path / "other", ["localhost"])
    (found,) = check_link(server, tmp_path / "other" / "ca.pem", insecure=False)
    assert (found.name, found.level) == ("certificate", "broken")


def test_nobody_there_is_a_problem(tmp_path: Path) -> None:
    (found,) = check_link(Address("127.0.0.1", 1), None, insecure=True)
    assert (found.name, found.level) == ("superlink", "broken")
    assert found.advice


@pytest.mark.parametrize("text", ["host", "host:", ":8000", "https://h:8000", "h:99999"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--superlink"):
        Address.parse(text)


def test_a_checkpoint_of_lightning_is_the_silos_own_model(write: Write, tmp_path: Path) -> None:
    state = copy_state(build_model("mlp", SHAPE, seed=3))
    wrapped = {f"model.{key}": tensor for key, tensor in state.items()}
    torch.save({"epoch": 4, "state_dict": wrapped}, tmp_path / "last.ckpt")
    file = write({"model": {"checkpoint": "last.ckpt", "arch": "mlp"}})
    arch, found = read_own_model(file, SHAPE, CLASSES)
    assert arch == "mlp"
    assert all(torch.equal(found.state[key], state[key]) for key in state)
    assert [note.partition(": ")[2] for note in found.notes] == [
        "the weights are those under 'state_dict'; entries left out besides: 1",
        "the prefix model. was removed from all names",
    ]
    with pytest.raises(UserError, match="gives 3 outputs where 4 are expected: its last layer"):
        read_own_model(file, Shape(4, 1, 8), (*CLASSES, "white"))
    with pytest.raises(UserError, match=r"model.arch: is missing, and .*last.ckpt does not name"):
        read_own_model(write({"model": {"checkpoint": "last.ckpt"}}), SHAPE, CLASSES)


def test_code_that_only_the_checkpoint_names_is_never_imported(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "sown.py").write_text(
        "from pathlib import Path\nfrom fedkd.models.builtin import mlp as net\n"
        f"Path({str(tmp_path / 'ran')!r}).touch()\n"
    )
    file = write()
    state = copy_state(build_model("mlp", SHAPE, seed=0))
    save_model(tmp_path / "own.safetensors", state, ModelCard("sown:net", SHAPE))
    held = read_holdings(file)
    with pytest.raises(UserError, match=r"if it is yours, set model\.arch: sown:net"):
        read_own_model(file, held.shape, held.classes)
    assert not (tmp_path / "ran").exists()
    findings = {each.name: each for each in SiloCheck(file, None).findings()}
    assert findings["model"].level == "broken"
    assert not (tmp_path / "ran").exists()
    named = write({"model": {"checkpoint": "own.safetensors", "arch": "sown:net"}})
    save_model(tmp_path / "own.safetensors", state, ModelCard("sown:net", SHAPE))
    assert read_own_model(named, held.shape, held.classes)[0] == "sown:net"


def test_what_is_odd_about_the_images_is_told_before_a_silo_starts(
    write: Write, tmp_path: Path
) -> None:
    file = write({"labels": {"1": "red", "2": "green"}})
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(30) % 2 + 1)
    (data,) = [each for each in SiloCheck(file, None).findings() if each.name == "data"]
    assert data.level == "note"
    assert "of 3 classes, 1 have no example" in data.advice


def test_links_to_folders_above_end(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "up").symlink_to(tmp_path, target_is_directory=True)
        (tmp_path / name / "here").symlink_to(".", target_is_directory=True)
    (tmp_path / "b" / "1.png").write_bytes(b"1")
    before = stamp_path(tmp_path)
    assert stamp_path(tmp_path) == before
    (tmp_path / "b" / "1.png").write_bytes(b"12")
    assert stamp_path(tmp_path) != before
