"""Three deployed silos with files of their own in this process, and a server."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.app.message.message import make_message

from clients.handlers import app
from fedkd.config.study_file import parse_study
from fedkd.data.images import content_hash
from fedkd.engines.inline import RUN_ID, SERVER_NODE, InlineGrid
from fedkd.federation.deployed_data import draw_transfer
from fedkd.federation.federation import Federation
from fedkd.messages import keys
from fedkd.models.build import Shape, build_model
from fedkd.models.card import ModelCard, save_model
from fedkd.models.state import copy_state
from fedkd.results.record import RunRecord
from strategies.context import RunContext
from strategies.server_app import Serving, make_server_app

SHAPE = Shape(3, 1, 8)
NAMES = ("north", "south", "west")
SHARE = {
    "teacher": "weights",
    "densities": True,
    "moments": True,
    "class_counts": True,
    "min_samples": 1,
}
FAMILIARITY = {"weighting": "familiarity", "epochs": 2}
ARMS = {
    "fedavg": {"start": "random"},
    "fedkd": {"start": "consolidated", "consolidation": FAMILIARITY},
    "fedkd-pooled": {
        "start": "consolidated",
        "consolidation": {**FAMILIARITY, "familiarity": {"density": "pooled", "dims": 5}},
    },
    "fedkd-logits": {
        "start": "consolidated",
        "consolidation": {**FAMILIARITY, "mode": "logits", "student": "fresh"},
    },
}


class Deaf:
    def on_point(self, point: Any) -> None:
        pass

    def on_distillation(self, epoch: int, epochs: int) -> None:
        pass

    def on_waiting(self, reason: str) -> None:
        pass


class CopyingGrid(InlineGrid):
    """Silos get records of their own, as over a network: a deployed silo empties them."""

    def _answer(self, message: Message, context: Context) -> Any:
        own = {
            name: ArrayRecord(dict(record)) if isinstance(record, ArrayRecord) else record
            for name, record in message.content.items()
        }
        return super()._answer(make_message(message.metadata, RecordDict(own)), context)


@dataclass
class Field:
    """Three silos with files of their own, and a server without labelled images."""

    root: Path
    pool: ThreadPoolExecutor
    study: dict[str, Any] = dataclass_field(default_factory=dict)
    observer: Deaf = dataclass_field(default_factory=Deaf)
    hashes: dict[str, str] = dataclass_field(default_factory=dict)

    def write(self, name: str, changes: dict[str, Any]) -> None:
        images = np.random.default_rng(len(name)).integers(0, 256, (40, 8, 8), dtype=np.uint8)
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        np.savez(folder / "data.npz", images=images, labels=np.arange(40) % 3)
        arch = "mlp" if name == "west" else "cnn"
        state = copy_state(build_model(arch, SHAPE, seed=len(name)))
        save_model(folder / "own.safetensors", state, ModelCard(arch, SHAPE))
        data = {
            "name": name,
            "data": "npz:data.npz",
            "labels": {"0": "a", "1": "b", "2": "c"},
            "model": {"checkpoint": "own.safetensors"},
            "audit": "audit.jsonl",
            "threads": 1,
            "approve": {"study": "any", "transfer": [self.transfer_hash()]},
            **changes,
            "share": {**SHARE, **changes.get("share", {})},
        }
        path = folder / "silo.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in data.items() if v is not None}))

    def transfer(self, name: str) -> str:
        if not (self.root / name).exists():
            images = np.random.default_rng(9).integers(0, 256, (60, 8, 8), dtype=np.uint8)
            np.savez(self.root / name, images=images, labels=np.arange(60) % 3)
        return f"npz:{self.root / name}"

    def transfer_hash(self) -> str:
        text = self.study_text()
        if text not in self.hashes:  # every silo's file has it
            drawn = draw_transfer(parse_study(text), 0, self.transfer("server.npz"))
            assert drawn is not None
            self.hashes[text] = content_hash(drawn.images)
        return self.hashes[text]

    def study_text(self) -> str:
        return json.dumps(
            {
                "name": "field",
                "data": {
                    "classes": ["a", "b", "c"],
                    "channels": 1,
                    "image_size": 8,
                    "transfer": {"source": self.transfer("server.npz"), "size": 40},
                },
                "partition": {"scheme": "deployed", "names": list(NAMES)},
                "model": {"arch": "cnn", "per_silo": {"west": "mlp"}},
                "rounds": {"max": 1, "timeout": 5, "quorum": 0.3},
                "targets": [0.99],
                "arms": ARMS,
                "seeds": [0],
                "engine": {"server_threads": 1},
                **self.study,
            }
        )

    def context(self, node: int, name: str, arm: str) -> Context:
        config: Any = {keys.CONFIG_STUDY: self.study_text(), keys.CONFIG_ARM: arm}
        config |= {keys.CONFIG_SEED: 0, keys.CONFIG_CACHE_DIR: str(self.root / "cache")}
        own: Any = {keys.NODE_SILO: str(self.root / name / "silo.yaml")}
        return Context(RUN_ID, node, own, RecordDict(), config)

    def grid(self, arm: str) -> InlineGrid:
        contexts = {2 + i: self.context(2 + i, name, arm) for i, name in enumerate(NAMES)}
        return CopyingGrid(app, contexts, self.pool)

    def run(self, arm: str) -> RunRecord:
        study = parse_study(self.study_text())
        context = RunContext.of(Federation.on_server(study, 0, self.root / "cache"), arm, (0.99,))
        folder = self.root / "record" / arm
        shutil.rmtree(folder, ignore_errors=True)
        server = make_server_app(lambda _: Serving(context, folder, self.observer))
        grid = self.grid(arm)
        server(grid, Context(RUN_ID, SERVER_NODE, {}, RecordDict(), {}))
        return RunRecord.read(folder)

    def audit(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(x) for x in (self.root / name / "audit.jsonl").read_text().splitlines()]

    def ask(
        self,
        name: str,
        kind: str,
        config: dict[str, Any],
        arm: str = "fedkd",
        records: RecordDict | None = None,
    ) -> Message:
        return app(self.question(kind, config, records), self.context(2, name, arm))

    @staticmethod
    def question(kind: str, config: dict[str, Any], records: RecordDict | None = None) -> Message:
        record = ConfigRecord({keys.RUN_ID: "r", keys.ROUND: 0, **config})
        message = Message(RecordDict({keys.CONFIG: record, **(records or {})}), 2, kind)
        message.metadata.__dict__["_message_id"] = "m"
        return message


@pytest.fixture
def field(
    tmp_path: Path, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Field]:
    """Return a function that makes a field, with changes to the files of some silos."""
    # Every message holds the whole study.
    monkeypatch.setattr("clients.deployed.parse_study", lru_cache(maxsize=1)(parse_study))
    # No other test reads these files: in the session's cache they would be in everybody's way.
    monkeypatch.setenv("FEDKD_CACHE_DIR", str(tmp_path / "silos-cache"))

    def make(changes: dict[str, dict[str, Any]] | None = None) -> Field:
        made = Field(tmp_path, pool)
        InlineGrid(app, {}, pool)  # sets the run that messages are of, in tests that start none
        for name in NAMES:
            made.write(name, (changes or {}).get(name, {}))
        return made

    return make
