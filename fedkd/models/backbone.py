"""What a study says of its pre-trained model: weights, preprocessing, the part that is trained."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace

from fedkd.config import Study
from fedkd.config.backbone import LastBlocks, LoraTraining, Normalization
from fedkd.errors import UserError
from fedkd.models.preprocessing import Preprocessing, from_config, identity
from fedkd.models.pretrained import hash_weights, preprocessing_of_weights
from fedkd.registry import HUGGING_FACE


@dataclass(frozen=True)
class Trained:
    """The part of a network that is trained; the rest keeps its weights.

    Attributes:
        kind: ``all``, ``head``, ``last`` (blocks and the head) or ``lora`` (adapters and the head).
        number: of blocks, or the rank of adapters.
        targets: names of the layers with adapters; empty for all linear layers.
    """

    kind: str = "all"
    number: int = 0
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Backbone:
    """How the networks of a study are built beyond their architecture.

    Attributes:
        arch: the architecture that the weights and the trained part belong to.
        weights: name or file of its weights, or empty; of ``hf:`` this host's folder of the
            network, if it is not ``arch``'s.
        weights_hash: of their content, or empty.
        preprocessing: inside the models, or None.
        trained: the part of ``arch`` that is trained.
        others: further architectures whose models have the preprocessing too.
    """

    arch: str
    weights: str = ""
    weights_hash: str = ""
    preprocessing: Preprocessing | None = None
    trained: Trained = Trained()
    others: tuple[str, ...] = ()

    @classmethod
    def of(cls, study: Study, *, weights: str | None = None) -> Backbone | None:
        """Return what a study says; None for networks as they are, from random weights.

        By default this host's file of ``model.weights``, or its folder of the network of ``hf:``,
        is where the study says.

        Raises:
            UserError: weights cannot be found or read, or contradict the preprocessing.
        """
        model, own = study.model, study.pretraining.preprocessing
        is_folder = model.arch.startswith(HUGGING_FACE)
        arch = f"{HUGGING_FACE}{weights}" if is_folder and weights else model.arch
        pretrained = model.weights is not None or is_folder
        preprocessing = choose_preprocessing(arch, model.weights, model.preprocessing)
        if preprocessing is None and (given := [from_config(each) for each in own.values()]):
            channels = next((len(each.mean) for each in given if each is not None), 0)
            sizes = {each.size for each in given if each is not None}
            preprocessing = identity(channels, *sizes) if channels else None
        if not pretrained and preprocessing is None:
            return None
        if weights is None or not pretrained:
            weights = model.weights
        return cls(
            model.arch,
            weights or "",
            hash_weights(arch, None if is_folder else weights) if pretrained else "",
            preprocessing,
            _trained(model.train),
            tuple(sorted({*model.per_silo.values()} - {model.arch})),
        )

    def arch_here(self, arch: str) -> str:
        """Return a study's name of an architecture as on this host, where ``hf:`` may be moved."""
        moved = arch == self.arch and arch.startswith(HUGGING_FACE) and self.weights
        return f"{HUGGING_FACE}{self.weights}" if moved else arch

    @property
    def is_pretrained(self) -> bool:
        """Whether ``arch`` has weights of its own."""
        return bool(self.weights_hash)

    @property
    def fixed_hash(self) -> str:
        """Hash of the part that nobody trains; empty where all is trained.

        It names what silos must have in common: equal hashes give equal features.
        """
        return (
            "" if self.trained.kind == "all" else self._hash(replace(self, weights="", others=()))
        )

    @property
    def features_hash(self) -> str:
        """Hash of what decides the features of the network without its head."""
        return self._hash(Backbone(self.arch, "", self.weights_hash, self.preprocessing))

    @staticmethod
    def _hash(known: Backbone) -> str:
        if known.arch.startswith(HUGGING_FACE):  # every host has a folder of its own
            known = replace(known, arch=HUGGING_FACE)
        return hashlib.sha256(json.dumps(asdict(known), sort_keys=True).encode()).hexdigest()

    @property
    def key(self) -> dict[str, object]:
        """What determines bits, for cache keys: the weights by their content."""
        return asdict(replace(self, weights=""))

    def prepares(self, arch: str) -> bool:
        """Whether models of ``arch`` are built by this."""
        return arch == self.arch or (arch in self.others and self.preprocessing is not None)


def choose_preprocessing(
    arch: str, weights: str | None, given: Normalization | str | None
) -> Preprocessing | None:
    """Return the preprocessing that a study gives, else that of the weights.

    Raises:
        UserError: the two contradict each other.
    """
    own = preprocessing_of_weights(arch, weights)
    if given is None:
        return own
    chosen = from_config(given)
    if own is not None and (chosen is None or (chosen.mean, chosen.std) != (own.mean, own.std)):
        raise UserError(
            f"model.preprocessing: contradicts the weights {weights or arch}, which are made for "
            f"mean {list(own.mean)} and std {list(own.std)}; leave it out, or give these with "
            "another size"
        )
    return chosen


def _trained(value: str | LastBlocks | LoraTraining) -> Trained:
    if isinstance(value, LastBlocks):
        return Trained("last", value.last)
    if isinstance(value, LoraTraining):
        return Trained("lora", value.lora.rank, tuple(value.lora.targets or ()))
    return Trained(value)
