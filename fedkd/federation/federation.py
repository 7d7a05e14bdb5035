"""A federation: the data of one seed, split among simulated silos that own trained models.

With deployed silos it holds the server's data only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from fedkd.config import Study
from fedkd.data.images import Images
from fedkd.errors import UserCodeError, UserError
from fedkd.federation.deployed_data import empty_split, load_server_split
from fedkd.federation.own_model import read_own_checkpoint, train_own_model
from fedkd.federation.split import Split, load_split
from fedkd.federation.thread_pool import on_this_machine
from fedkd.models.backbone import Backbone
from fedkd.models.build import arch_fingerprint, build_model
from fedkd.models.pool import ModelPool
from fedkd.models.preprocessing import Preprocessing, from_config, with_preprocessing
from fedkd.models.state import Checkpoint, State, copy_state, is_finite, load_state, save_state
from fedkd.models.weights_file import read_weights
from fedkd.registry import AUGMENTATIONS, is_external
from fedkd.training.compute import Compute
from fedkd.training.external import CannotLearnError
from fedkd.user_code import hash_files
from fedkd.util.cache import cache_key
from fedkd.util.cache_entries import drop_entry, has_entry, new_entry
from fedkd.util.checkpoint_files import files_of
from fedkd.util.parallel import run_all
from fedkd.util.seeding import derive_seed

MODEL_FILE = "model.safetensors"
"""In a cache entry of a pre-trained model."""


@dataclass(frozen=True)
class Pretrained:
    """A silo's own model: its state, or the reason why it cannot be used."""

    state: State | None
    problem: str = ""


class Federation:
    """What the arms of one seed share: test, validation and transfer data, silos, models.

    Args:
        study: the study, of which ``auto`` device and threads become this machine's.
        seed: the repetition.
        split: the data, as :func:`fedkd.federation.split.load_split` splits it.
        cache: folder in which pre-trained models are cached.
        with_weights: whether the study's pre-trained weights are read on this host.
    """

    def __init__(
        self, study: Study, seed: int, split: Split, cache: Path, *, with_weights: bool = True
    ) -> None:
        here = on_this_machine(study)
        self.study = here if with_weights else study  # of deployed silos, the server resolves it
        self.seed = seed
        self.split = split
        self.cache = cache
        backbone = Backbone.of(study) if with_weights else None
        self.shape = replace(split.shape, backbone=backbone)
        engine = here.engine
        self.compute = Compute(engine.device, engine.precision, int(engine.silo_threads))
        self.model_pool = ModelPool()
        self._fingerprint: dict[str, object] | None = None
        self._failed: dict[str, str] = {}
        names = () if study.is_deployed else study.silo_names
        self._silos = dict(zip(names, split.silos, strict=True))
        self._tests = dict(zip(names, split.silo_tests, strict=False))

    @classmethod
    def load(cls, study: Study, seed: int, cache: Path) -> Federation:
        """Read the study's data and split it.

        Raises:
            UserError: a source is missing or too small, or the silos are deployed.
        """
        return cls(study, seed, load_split(study, seed, cache), cache)

    @classmethod
    def on_server(cls, study: Study, seed: int, cache: Path) -> Federation:
        """Read what the ServerApp needs: with deployed silos, the server's data alone.

        Raises:
            UserError: a source is missing, too small, or does not fit the study.
        """
        split = (
            load_server_split(study, seed) if study.is_deployed else load_split(study, seed, cache)
        )
        return cls(study, seed, split, cache)

    @classmethod
    def for_caller(cls, study: Study, seed: int, cache: Path) -> Federation:
        """Read what the caller of a study needs: with deployed silos, no data and no weights."""
        if study.is_deployed:
            return cls(study, seed, empty_split(study), cache, with_weights=False)
        return cls.load(study, seed, cache)

    @property
    def recalibrate_on(self) -> Images | None:
        """Examples for BatchNorm statistics of averages, None where these are averaged too."""
        return self.split.transfer if self.study.model.batch_norm == "recalibrate" else None

    @property
    def sizes(self) -> dict[str, int]:
        """Number of examples of each simulated silo, in natural order of names."""
        return {silo: len(data) for silo, data in self._silos.items()}

    def data_of(self, silo: str) -> Images:
        """Return the private examples of a silo."""
        return self._silos[silo]

    def compute_of(self, silo: str) -> Compute:
        """Return device, precision and threads of a silo."""
        return self.compute.by_turns(list(self._silos).index(silo))

    def test_of(self, silo: str) -> Images | None:
        """Return the test examples of a silo's own source, or None where it has none."""
        return self._tests.get(silo)

    def holdings(self) -> list[dict[str, object]]:
        """Return the number of examples and class counts of each simulated silo, in natural order.

        Deployed silos share these only if their owners allow it.
        """
        return [
            {
                "seed": self.seed,
                "silo": silo,
                "num_examples": len(data),
                "class_counts": torch.bincount(
                    data.labels, minlength=self.shape.num_classes
                ).tolist(),
            }
            for silo, data in self._silos.items()
        ]

    def pretrain(
        self, executor: Executor, *, fresh: bool = False, on_silo: Callable[[], None] | None = None
    ) -> None:
        """Train the silos' own models in parallel, unless they are in the cache.

        The largest silos are trained first, so that no worker waits for one of them at the end.
        """

        def train(silo: str) -> None:
            if fresh:
                drop_entry(self._cached_model(silo))
            self.pretrained(silo)
            if on_silo:
                on_silo()

        pretraining = self.study.pretraining
        silos = [s for s in self._silos if s not in pretraining.checkpoints]
        silos.sort(key=lambda silo: -len(self._silos[silo]))
        run_all(executor, [partial(train, silo) for silo in silos])

    def pretrained(self, silo: str) -> Pretrained:
        """Return a silo's own model: its checkpoint, or one pre-trained on its data.

        An exception in the user's architecture during pre-training is returned as the problem.
        """
        least = self.study.pretraining.min_size
        if len(self._silos[silo]) < least and silo not in self.study.pretraining.checkpoints:
            return Pretrained(None, f"it has no model of its own, with fewer than {least} examples")
        if silo in self._failed:
            return Pretrained(None, self._failed[silo])
        try:
            if checkpoint := self.study.pretraining.checkpoints.get(silo):
                what = f"pretraining.checkpoints.{silo}"
                state = self.read_checkpoint(silo, checkpoint, what).state
            else:
                state = self._read_model(silo) or self._train_model(silo)
        except (UserCodeError, CannotLearnError) as error:
            self._failed[silo] = f"its pre-training failed: {error}"
            return Pretrained(None, self._failed[silo])
        if not is_finite(state) and not is_finite(state, self.initial_model(silo)):
            return Pretrained(None, "its pre-trained model diverged: not all weights are finite")
        return Pretrained(state)

    def fingerprint(self) -> dict[str, object]:
        """Return what determines the seed's data and models, for cache keys; computed once."""
        if self._fingerprint is None:
            self._fingerprint = self._compute_fingerprint()
        return self._fingerprint

    def _compute_fingerprint(self) -> dict[str, object]:
        parts = [self.split.test, self.split.validation, *self.split.silos]
        parts += [self.split.transfer] if self.split.transfer is not None else []
        checkpoints = {
            silo: hash_files([str(file) for file in files_of(Path(path))])
            for silo, path in self.study.pretraining.checkpoints.items()
        }
        tests = [None if test is None else test.digest for test in self._tests.values()]
        return {
            "seed": self.seed,
            "silo_tests": tests,
            "images": [part.digest for part in parts],
            "classes": self.shape.num_classes,
            "archs": [self._arch_key(self.study.arch_of(silo)) for silo in self._silos],
            "arch": self._arch_key(self.study.model.arch),
            "batch_norm": self.study.model.batch_norm,
            "pretraining": self._pretraining_key(),
            "checkpoints": checkpoints,
        }

    def _arch_key(self, arch: str) -> str:
        return arch_fingerprint(arch, self.study.model.files, self.shape.backbone)

    def _pretraining_key(self) -> dict[str, object]:
        settings = self.study.pretraining
        augment = AUGMENTATIONS.fingerprint(settings.augment)
        return {**settings.model_dump(exclude={"checkpoints"}), "augment": augment}

    def require_transfer(self) -> None:
        """Check that there is a transfer set; it is left out if no arm of the study needs one.

        Raises:
            UserError: too few examples were left for a transfer set.
        """
        if self.split.transfer is None and not self.study.data.transfer.at_silo:
            raise UserError(
                f"data.transfer.size: {self.study.data.transfer.size} examples are requested, but "
                "too few are left after test, validation and silos; lower it"
            )

    def initial_model(self, silo: str) -> State:
        """Return the initial weights of a silo's own model."""
        owner = silo if self.study.pretraining.init == "per-silo" else ""
        seed = derive_seed(self.seed, "initial-model", owner)
        state = copy_state(build_model(self.study.arch_of(silo), self.shape, seed=seed))
        return with_preprocessing(state, self.own_preprocessing(silo), self.shape.preprocessing)

    def own_preprocessing(self, silo: str) -> Preprocessing | None:
        """Return the preprocessing of a silo's own model."""
        own = self.study.pretraining.preprocessing
        return from_config(own[silo]) if silo in own else self.shape.preprocessing

    def read_checkpoint(self, silo: str, path: str, what: str) -> Checkpoint:
        """Read a silo's own model; see :func:`fedkd.federation.own_model.read_own_checkpoint`."""
        return read_own_checkpoint(self, silo, Path(path), what)

    def _read_model(self, silo: str) -> State | None:
        """Read a silo's model from the cache; None if it is absent or damaged."""
        entry = self._cached_model(silo)
        if has_entry(entry):
            with contextlib.suppress(UserError):
                if is_external(self.study.arch_of(silo)):  # its tensors have any length
                    return read_weights(entry / MODEL_FILE, what="model").state
                return load_state(entry / MODEL_FILE, self.initial_model(silo))
        return None

    def _train_model(self, silo: str) -> State:
        state = train_own_model(self, silo)
        with new_entry(self._cached_model(silo)) as entry:
            save_state(entry / MODEL_FILE, state)
        return state

    def _cached_model(self, silo: str) -> Path:
        parts = {
            "kind": "pre-trained model",
            "images": self._silos[silo].digest,
            "arch": self._arch_key(self.study.arch_of(silo)),
            "classes": self.shape.num_classes,
            "settings": self._pretraining_key(),
            "seed": self.seed,
            "silo": silo,
            **asdict(self.compute),
        }
        return self.cache / "pretrained" / cache_key(parts)
