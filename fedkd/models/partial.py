"""Models with preprocessing inside, and models of which a part is trained.

The state dict of a model holds what is trained, and no more: that is what rounds exchange, average
and count. ``plain_state`` gives the whole network, as its library names its tensors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedkd.data.images import Images
from fedkd.errors import UserError
from fedkd.models.adapters import merge_adapters
from fedkd.models.fixed import FixedPart
from fedkd.models.preprocessing import Preprocess, Preprocessing
from fedkd.models.state import State, mismatch

NETWORK = "network."
MAX_KEPT_BYTES = 2 << 30
"""Most bytes of the features of one set of examples; larger ones are computed whenever needed."""
HEAD_KEYS = ("head.weight", "head.bias")
"""Keys of a :class:`HeadModel`'s state."""


class BackboneModel(nn.Module, ABC):
    """A network with preprocessing, of which a part may be trained alone."""

    @abstractmethod
    def plain_state(self) -> State:
        """Return the whole network's state dict, adapters merged, without the preprocessing."""

    @abstractmethod
    def state_from_plain(self, plain: State, what: str) -> State:
        """Return the state dict of this model that a whole network's gives.

        Raises:
            UserError: the network differs in the part that nobody trains.
        """


class FeaturesModel(BackboneModel):
    """A model whose fixed part sees each example once: its features are kept."""

    @abstractmethod
    def split_fixed(self) -> tuple[FixedPart, nn.Module]:
        """Return the fixed part, and the rest, which maps its features to logits."""


class PreparedModel(BackboneModel):
    """Preprocessing, then a network, all of which is trained."""

    def __init__(self, preprocessing: Preprocessing, network: nn.Module) -> None:
        super().__init__()
        self.preprocess = Preprocess(preprocessing)
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[N, C]`` of floats ``[N, C, H, W]`` in [0, 1]."""
        logits: Tensor = self.network(self.preprocess(images))
        return logits

    def plain_state(self) -> State:
        """Return the network's state dict."""
        return dict(self.network.state_dict())

    def state_from_plain(self, plain: State, what: str) -> State:  # noqa: ARG002 -- as above
        """Return the state dict with this model's own preprocessing."""
        network = {NETWORK + key: tensor for key, tensor in plain.items()}
        return {key: network.get(key, tensor) for key, tensor in self.state_dict().items()}


class HeadModel(FeaturesModel):
    """A fixed part, and a linear layer: all that is trained.

    The template is the whole network's state dict; ``name`` is a prefix of its head's keys.
    """

    def __init__(self, fixed: FixedPart, head: nn.Linear, template: State, name: str) -> None:
        super().__init__()
        # Not registered: it is no part of the state, and no device or mode of this model is its.
        self.__dict__.update(fixed=fixed, template=template, head_name=name)
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[N, C]`` of floats ``[N, C, H, W]`` in [0, 1]."""
        fixed: FixedPart = self.__dict__["fixed"]
        logits: Tensor = self.head(fixed.on(str(images.device))(images))
        return logits

    def split_fixed(self) -> tuple[FixedPart, nn.Module]:
        """Return the fixed part, and the linear layer; see ``fit``."""
        return self.__dict__["fixed"], self.head

    def plain_state(self) -> State:
        """Return the network's state dict with this head."""
        name = self.__dict__["head_name"]
        own = {f"{name}.{key}": tensor for key, tensor in self.head.state_dict().items()}
        return {key: own.get(key, t) for key, t in self.__dict__["template"].items()}

    def state_from_plain(self, plain: State, what: str) -> State:
        """Return the head of a network whose other weights are those of the fixed part."""
        name = f"{self.__dict__['head_name']}."
        _check_same_fixed(
            plain, self.__dict__["template"], {name + key for key in self.head.state_dict()}, what
        )
        return {
            f"head.{key.removeprefix(name)}": t for key, t in plain.items() if key.startswith(name)
        }


class PartlyTrainedModel(BackboneModel):
    """A network of which some weights are trained; all others stay as they are.

    ``trained`` are names of modules, which are trained with all below them. If it ``merges``,
    the whole network's state has its adapters merged.
    """

    def __init__(
        self,
        preprocessing: Preprocessing | None,
        network: nn.Module,
        trained: tuple[str, ...],
        *,
        merges: bool = False,
    ) -> None:
        super().__init__()
        self.preprocess = Preprocess(preprocessing) if preprocessing else nn.Identity()
        self.network = network
        self._modules_trained = trained
        self._merges = merges
        names = [*dict(network.named_parameters()), *dict(network.named_buffers())]
        inside = tuple(f"{name}." for name in trained)
        self._keys = frozenset(NETWORK + name for name in names if name.startswith(inside))
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in self._keys)
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[N, C]`` of floats ``[N, C, H, W]`` in [0, 1]."""
        logits: Tensor = self.network(self.preprocess(images))
        return logits

    def train(self, mode: bool = True) -> PartlyTrainedModel:  # noqa: FBT001, FBT002 -- PyTorch's
        """Set the mode of what is trained; the rest stays in evaluation mode.

        Batch statistics of the rest are part of what nobody trains.
        """
        super().train(mode=False)
        self.training = mode
        for name in self._modules_trained:
            self.network.get_submodule(name).train(mode)
        return self

    @property
    def fixed_names(self) -> frozenset[str]:
        """Names of the buffers that never change."""
        return frozenset(name for name, _ in self.named_buffers()) - self._keys

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return what is trained."""
        whole = super().state_dict(*args, **kwargs)
        return {key: tensor for key, tensor in whole.items() if key in self._keys}

    def load_state_dict(
        self,
        state_dict: Mapping[str, Any],
        strict: bool = True,  # noqa: FBT001, FBT002 -- PyTorch's signature
        assign: bool = False,  # noqa: FBT001, FBT002 -- likewise
    ) -> Any:
        """Load what is trained.

        Raises:
            RuntimeError: it has other keys.
        """
        if strict and (odd := set(state_dict) ^ set(self.state_dict())):
            raise RuntimeError(f"{sorted(odd)[0]!r} is missing, or not trained")
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def plain_state(self) -> State:
        """Return the network's state dict, adapters merged."""
        network = merge_adapters(self.network) if self._merges else self.network
        return dict(network.state_dict())

    def state_from_plain(self, plain: State, what: str) -> State:
        """Return what is trained of a network whose other weights are the fixed ones."""
        if self._merges:
            raise UserError(
                f"{what}: holds a whole network, from which adapters cannot be told apart; give "
                "a model that was trained with the same model.train, or set model.train: all"
            )
        own = {key.removeprefix(NETWORK) for key in self._keys}
        _check_same_fixed(plain, self.plain_state(), own, what)
        return {NETWORK + key: tensor for key, tensor in plain.items() if key in own}


class SplitModel(PartlyTrainedModel, FeaturesModel):
    """A network whose first blocks are fixed.

    They are shared by all models of the process. Further arguments are those of
    :class:`PartlyTrainedModel`.
    """

    def __init__(self, fixed: FixedPart, rest: nn.Module, *model: Any) -> None:
        super().__init__(*model)
        self.__dict__.update(fixed=fixed, rest=rest)

    def split_fixed(self) -> tuple[FixedPart, nn.Module]:
        """Return the first blocks, and what follows them."""
        return self.__dict__["fixed"], self.__dict__["rest"]


def kept_features(
    model: nn.Module, images: Tensor | Images, *, device: str, precision: str
) -> tuple[nn.Module, Tensor] | None:
    """Return what maps features to logits, and the features of examples ``[N, ...]``.

    None for a model without a fixed part of which features are kept, or if they are too large.
    """
    is_float = isinstance(images, Tensor) and images.is_floating_point()
    if is_float or not isinstance(model, FeaturesModel):
        return None
    fixed, rest = model.split_fixed()
    if fixed.feature_bytes(images) * len(images) > MAX_KEPT_BYTES:
        return None
    return rest, fixed.features(images, device=device, precision=precision)


def _check_same_fixed(plain: State, template: State, trained: set[str], what: str) -> None:
    if problem := mismatch(plain, template):
        raise UserError(f"{what}: does not fit the architecture: {problem}")
    for key, tensor in template.items():
        if key not in trained and not torch.equal(plain[key].cpu(), tensor.cpu()):
            raise UserError(
                f"{what}: differs from model.weights in {key!r}, which nobody trains; train only "
                "the part that model.train names, or set model.train: all"
            )
