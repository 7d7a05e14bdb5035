"""Networks of Hugging Face with their weights: image classifiers, text classifiers and encoders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fedkd.errors import UserError
from fedkd.models.downloads import check_download
from fedkd.models.libraries import require


def hugging_face_builder(name: str) -> Callable[..., nn.Module]:
    """Return a function that reads a classifier of Hugging Face, weights included.

    The name is a folder that ``save_pretrained`` wrote, or ``owner/name`` on the hub, whose local
    cache comes before a download.

    Raises:
        UserError: transformers is not installed.
    """
    require("transformers", "model.arch: hf")

    def build(
        num_classes: int,
        in_channels: int = 0,
        image_size: int = 0,  # noqa: ARG001 -- one signature for all
        shape: tuple[int, ...] = (),
    ) -> nn.Module:
        network = read_hugging_face(name, num_labels=num_classes)
        if isinstance(network, TextNetwork):
            if not shape:
                raise ValueError("it takes texts")
            return network
        channels = getattr(network.classifier.config, "num_channels", in_channels)
        if shape or channels != in_channels:
            raise ValueError(f"it takes images of {channels or 3} channels")
        return network

    return build


def read_hugging_face(name: str, **config: Any) -> LogitsOf | TextNetwork:
    """Read a network, whose settings ``config`` changes, with a vocabulary one of texts.

    A head of another number of classes is replaced by a random one. An encoder of texts without a
    head gets one on the mean of its outputs.
    """
    transformers = require("transformers", "model.arch: hf")
    settings = _from_hub(transformers.AutoConfig, name, **config)
    options = {"config": settings, "ignore_mismatched_sizes": True, "use_safetensors": True}
    if not hasattr(settings, "vocab_size"):
        return LogitsOf(_from_hub(transformers.AutoModelForImageClassification, name, **options))
    has_head = "ForSequenceClassification" in "".join(settings.architectures or ())
    kind = transformers.AutoModelForSequenceClassification if has_head else transformers.AutoModel
    return TextNetwork(_from_hub(kind, name, **options), has_head=has_head)


def settings_of(network: LogitsOf | TextNetwork) -> str:
    """Return the settings of a network as JSON, without the folder that they were read from."""
    inner = network.network if isinstance(network, TextNetwork) else network.classifier
    values = inner.config.to_dict()
    own = {key: values[key] for key in values.keys() - {"_name_or_path", "transformers_version"}}
    return json.dumps(own, sort_keys=True, default=str)


def hugging_face_preprocessing(name: str) -> dict[str, Any]:
    """Return ``preprocessor_config.json`` of an image classifier; empty where it has none."""
    transformers = require("transformers", "model.arch: hf")
    try:
        config = _from_hub(transformers.AutoImageProcessor, name)
    except Exception:  # it has no such file, or one that names an unknown class
        return {}
    values: dict[str, Any] = config.to_dict()
    return values


def check_tokenizer(name: str, tokenizer: Any) -> None:
    """Refuse a tokenizer that a network was not made for."""
    config = _from_hub(require("transformers", "model.arch: hf").AutoConfig, name)
    length, own = tokenizer.truncation["max_length"], tokenizer.padding["pad_id"]
    size, known = tokenizer.get_vocab_size(), getattr(config, "vocab_size", 0)
    if known and (size > known or own != (config.pad_token_id or 0)):
        raise UserError(
            f"data.text.tokenizer: has {size} tokens and fills up with token {own}, but hf:{name} "
            f"has {known} tokens and token {config.pad_token_id}; use the tokenizer of the model"
        )
    if length > (longest := getattr(config, "max_position_embeddings", length)):
        raise UserError(
            f"data.text.max_length: is {length}, but hf:{name} takes at most {longest} tokens"
        )


def _from_hub(kind: Any, name: str, **options: Any) -> Any:
    """Read from a folder or the local cache, else from the hub; never code that comes along.

    Raises:
        UserError: it is not here, and this host downloads nothing.
    """
    options["trust_remote_code"] = False
    transformers = require("transformers", "model.arch: hf")
    transformers.logging.set_verbosity_error()  # it reports every new head as a mismatch
    transformers.logging.disable_progress_bar()
    try:
        return kind.from_pretrained(name, local_files_only=True, **options)
    except OSError:
        if Path(name).is_dir():
            raise
        if name.startswith(("/", ".", "~")):
            raise UserError(
                f"model.arch: there is no folder {name} on this host; a deployed silo names its "
                "own copy by model.weights in silo.yaml"
            ) from None
        remedy = f"fetch it with `hf download {name}`, name its folder by model.weights there"
        check_download(f"model.arch: hf:{name}", remedy)
        return kind.from_pretrained(name, **options)


class LogitsOf(nn.Module):
    """An image classifier of Hugging Face as a module that returns logits ``[N, C]``."""

    classifier: Any

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Return the classifier's logits for floats ``[N, C, H, W]``."""
        logits: Tensor = self.classifier(pixel_values=images).logits
        return logits


class TextNetwork(nn.Module):
    """A network of Hugging Face that maps token ids ``[N, L]``, padded at their end, to logits.

    An encoder gets a linear layer on the mean of its outputs over a text's tokens, which is what
    sentence encoders are trained for (Reimers & Gurevych 1908.10084).
    """

    def __init__(self, network: Any, *, has_head: bool) -> None:
        super().__init__()
        self._pad = network.config.pad_token_id or 0
        self.network = network
        self.head: nn.Linear | None = None
        if not has_head:
            network.pooler = None  # its output is not used, and its weights would be exchanged
            self.head = nn.Linear(network.config.hidden_size, network.config.num_labels)

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits ``[N, C]``; columns that are padding alone are left out."""
        mask = ids != self._pad
        mask[:, 0] = True  # no text is empty
        length = int(mask.any(0).nonzero().max()) + 1
        ids, mask = ids[:, :length], mask[:, :length]
        outputs = self.network(input_ids=ids, attention_mask=mask)
        if self.head is None:
            return outputs.logits  # type: ignore[no-any-return]
        hidden: Tensor = outputs.last_hidden_state
        weights = mask[:, :, None].to(hidden.dtype)
        logits: Tensor = self.head((hidden * weights).sum(1) / weights.sum(1))
        return logits
