"""Pre-trained networks: weights, preprocessing, the part that is trained, and its features."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub as hub
import pytest
import torch
from torch import nn
from torchvision import models

from fedkd.config.backbone import Normalization
from fedkd.config.study_file import resolve_study
from fedkd.data.images import Images, as_float
from fedkd.distillation.density.basis import BackboneBasis, make_backbone_basis
from fedkd.distillation.density.discriminant import lda_head_student
from fedkd.distillation.density.moments import moments_of
from fedkd.errors import UserError
from fedkd.models import fixed
from fedkd.models.backbone import Backbone, Trained, choose_preprocessing
from fedkd.models.build import Shape, build_fixed_part, build_model
from fedkd.models.card import ModelCard, load_model, read_card, save_model
from fedkd.models.downloads import local_files_only
from fedkd.models.own_checkpoint import read_model
from fedkd.models.partial import BackboneModel, FeaturesModel, HeadModel
from fedkd.models.preprocessing import IMAGENET, Preprocessing, from_config, with_preprocessing
from fedkd.models.pretrained import hash_weights, load_weights, preprocessing_of_weights
from fedkd.models.state import copy_state, save_state
from fedkd.training.compute import Compute
from fedkd.training.evaluate import predict
from fedkd.training.loop import train_supervised
from fedkd.training.optimizer import OptimizerSettings

NAME = "shufflenet_v2_x0_5"
ARCH = f"torchvision:{NAME}"
TAG = "IMAGENET1K_V1"
SMALL = Preprocessing(IMAGENET.mean, IMAGENET.std, 32)
ALL_PARTS = (Trained(), Trained("head"), Trained("last", 2), Trained("lora", 4, ("branch2.0",)))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of random weights, named as torchvision names its download."""
    torch.manual_seed(3)
    network = models.get_model(NAME, weights=None)
    for module in network.modules():  # as after training: batch statistics of their own
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
    folder = tmp_path_factory.mktemp("torch") / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    path = folder / models.get_model_weights(NAME)[TAG].url.rpartition("/")[2]
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(autouse=True)
def _local_hub(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(weights.parents[2]))


def backbone(trained: Trained, preprocessing: Preprocessing | None = SMALL) -> Backbone:
    return Backbone(ARCH, TAG, hash_weights(ARCH, TAG), preprocessing, trained)


def shape(trained: Trained, preprocessing: Preprocessing | None = SMALL, classes: int = 3) -> Shape:
    return Shape(classes, 3, 16, backbone(trained, preprocessing))


def pictures(count: int, seed: int = 0) -> Images:
    generator = torch.Generator().manual_seed(seed)
    size = (count, 3, 16, 16)
    images = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % 3
    return Images(images // (labels[:, None, None, None] + 1).to(torch.uint8), labels)


def test_weights_of_the_local_hub_are_those_of_the_network(weights: Path) -> None:
    model = build_model(ARCH, shape(Trained()), seed=0)
    assert isinstance(model, BackboneModel)
    plain, saved = model.plain_state(), torch.load(weights, weights_only=True)
    assert plain.keys() == saved.keys()
    assert all(torch.equal(plain[key], saved[key]) for key in plain if not key.startswith("fc."))
    assert plain["fc.weight"].shape == (3, 1024)


def test_a_random_start_has_the_weights_and_a_head_of_its_seed() -> None:
    one, same, other = (
        build_model(ARCH, shape(Trained()), seed=seed).state_dict() for seed in (1, 1, 2)
    )
    differing = {key for key in one if not torch.equal(one[key], other[key])}
    assert differing == {"network.fc.weight", "network.fc.bias"}
    assert all(torch.equal(one[key], same[key]) for key in one)


@pytest.mark.parametrize("channels", [1, 3])
def test_preprocessing_is_what_torchvision_does(channels: int) -> None:
    model = build_model(ARCH, replace(shape(Trained()), in_channels=channels), seed=0).eval()
    network: Any = model.network
    images = torch.rand(2, channels, 16, 16)
    large = nn.functional.interpolate(images, (32, 32), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(each)[:, None, None] for each in (IMAGENET.mean, IMAGENET.std))
    expected = network((large.expand(-1, 3, -1, -1) - mean) / std)
    assert torch.allclose(model(images), expected, atol=1e-5)


def test_weights_say_their_preprocessing() -> None:
    found = preprocessing_of_weights(ARCH, TAG)
    assert found == Preprocessing(IMAGENET.mean, IMAGENET.std, 224)
    assert choose_preprocessing(ARCH, TAG, None) == found
    assert choose_preprocessing(ARCH, TAG, "imagenet") == IMAGENET
    assert choose_preprocessing("cnn", None, None) is None
    own = Normalization(mean=[0.1], std=[0.2], size=8)
    assert choose_preprocessing("cnn", None, own) == Preprocessing((0.1,), (0.2,), 8)


@pytest.mark.parametrize("given", ["none", Normalization(mean=[0.5] * 3, std=[0.5] * 3)])
def test_contradicted_preprocessing_is_refused(given: Normalization | str) -> None:
    with pytest.raises(UserError, match=r"model.preprocessing: contradicts the weights"):
        choose_preprocessing(ARCH, TAG, given)


@pytest.mark.parametrize("trained", ALL_PARTS, ids=lambda each: each.kind)
def test_only_what_is_trained_is_state_and_changes(trained: Trained) -> None:
    model = build_model(ARCH, shape(trained), seed=0)
    assert isinstance(model, BackboneModel)
    before, plain = copy_state(model), {k: t.clone() for k, t in model.plain_state().items()}
    train(model)
    after, trained_plain = copy_state(model), model.plain_state()
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[key], after[key]) for key in after)
    changed = {key for key in plain if not torch.equal(plain[key], trained_plain[key])}
    starts = {
        "all": ("",),
        "head": ("fc.",),
        "last": ("fc.", "conv5.", "stage4.2.", "stage4.3."),
        "lora": ("fc.", *(f"stage{s}.{b}.branch2.0." for s in (2, 3, 4) for b in range(8))),
    }[trained.kind]
    assert changed
    assert all(key.startswith(starts) for key in changed)
    again = build_model(ARCH, shape(trained), seed=9)
    again.load_state_dict(after)
    images = pictures(4).images
    assert torch.equal(logits(model, images), logits(again, images))


def train(model: nn.Module, compute: Compute | None = None) -> None:
    train_supervised(
        model,
        pictures(12),
        optimizer=OptimizerSettings(epochs=2, batch_size=4, lr=0.1),
        generator=torch.Generator().manual_seed(0),
        compute=compute or Compute(),
    )


def logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return predict(model, images, compute=Compute())


def test_the_first_blocks_see_each_image_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDKD_CACHE_DIR", str(tmp_path))
    model = build_model(ARCH, shape(Trained("last", 1)), seed=0)
    assert isinstance(model, FeaturesModel)
    train(model)
    images = pictures(12).images
    found = logits(model, images)
    monkeypatch.setattr(fixed.FixedPart, "compute", None)
    assert torch.equal(logits(model, images), found)
    monkeypatch.setattr("fedkd.models.partial.MAX_KEPT_BYTES", 0)
    assert torch.allclose(logits(model, images), found, atol=1e-5)


@pytest.mark.parametrize("trained", ALL_PARTS, ids=lambda each: each.kind)
def test_a_whole_network_is_exported_and_gives_the_same_logits(
    trained: Trained, tmp_path: Path
) -> None:
    model = build_model(ARCH, shape(trained), seed=0)
    train(model)
    path = tmp_path / "model.safetensors"
    save_model(path, copy_state(model), ModelCard(ARCH, shape(trained)))
    card = read_card(path, what="x")
    assert card is not None
    assert card.preprocessing == SMALL
    loaded = build_model(card.arch, card.shape, seed=0)
    loaded.load_state_dict(load_model(path, card, what="x").state)
    images = pictures(4).images
    assert torch.allclose(logits(loaded, images), logits(model, images), atol=1e-4)
    plain = models.get_model(NAME, weights=None, num_classes=3)
    plain.load_state_dict(read_model(path, ARCH, Shape(3, 3, 16), what="x").state)


def test_a_checkpoint_of_the_whole_network_gives_the_head(tmp_path: Path) -> None:
    model = build_model(ARCH, shape(Trained("head")), seed=0)
    assert isinstance(model, BackboneModel)
    path = tmp_path / "model.safetensors"
    save_state(path, model.plain_state())
    read = read_model(path, ARCH, shape(Trained("head")), what="x", preprocessing=SMALL).state
    assert read.keys() == {"head.weight", "head.bias"}
    assert torch.equal(read["head.weight"], model.state_dict()["head.weight"])
    other = {**model.plain_state(), "conv1.0.weight": model.plain_state()["conv1.0.weight"] + 1}
    save_state(path, other)
    with pytest.raises(UserError, match=r"differs from model.weights in 'conv1.0.weight'"):
        read_model(path, ARCH, shape(Trained("head")), what="x", preprocessing=SMALL)


def test_a_silo_may_have_been_trained_with_another_preprocessing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_state(tmp_path / "a.safetensors", models.get_model(NAME, num_classes=3).state_dict())
    half = Preprocessing((0.5,) * 3, (0.25,) * 3)
    state = read_model(
        tmp_path / "a.safetensors", ARCH, shape(Trained()), what="x", preprocessing=half
    ).state
    assert state["preprocess.mean"].tolist() == [0.5] * 3
    assert state["preprocess.std"].tolist() == [0.25] * 3
    with pytest.raises(UserError, match="the models of the study have none of their own"):
        with_preprocessing({}, half, None)
    with pytest.raises(UserError, match="is for 1 channels, but the study's is for 3"):
        with_preprocessing(state, from_config(Normalization(mean=[0.1], std=[1])), SMALL)


def test_each_image_is_seen_once_by_all_models_and_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDKD_CACHE_DIR", str(tmp_path))
    seen: list[int] = []
    compute = fixed.FixedPart.compute

    def count(self: fixed.FixedPart, images: torch.Tensor, **kwargs: str) -> torch.Tensor:
        seen.append(len(images))
        return compute(self, images, **kwargs)

    monkeypatch.setattr(fixed.FixedPart, "compute", count)
    images = pictures(12).images
    models_of_seeds = [build_model(ARCH, shape(Trained("head")), seed=seed) for seed in (0, 1)]
    for model in models_of_seeds:
        train(model)
        logits(model, images.flip(0))
    assert seen == [12]
    logits(models_of_seeds[0], torch.cat([images[:3], pictures(2, seed=7).images]))
    assert seen == [12, 2]
    first = logits(models_of_seeds[0], images)
    fixed._store.cache_clear()  # as in another process
    assert torch.equal(logits(models_of_seeds[0], images), first)
    assert seen == [12, 2]
    for path in (tmp_path / "features").glob("*/features.safetensors"):
        path.write_bytes(b"damaged")
    fixed._store.cache_clear()
    assert torch.equal(logits(models_of_seeds[0], images), first)
    assert len(seen) == 3


def test_features_do_not_depend_on_the_images_beside_them_or_on_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = pictures(5).images
    found = []
    for name, threads, order in (("a", 1, [0, 1, 2, 3, 4]), ("b", 2, [3, 1, 0])):
        monkeypatch.setenv("FEDKD_CACHE_DIR", str(tmp_path / name))
        part = build_fixed_part(shape(Trained("head")))
        assert part is not None
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        found.append(part.features(images[order], device="cpu", precision="fp32"))
        torch.set_num_threads(before)
    assert torch.equal(found[0][[3, 1, 0]], found[1])
    part = build_fixed_part(shape(Trained("head")))
    assert part is not None
    assert torch.allclose(part(as_float(images)), found[0], atol=1e-4)


def test_features_are_those_of_another_model_only_where_its_fixed_part_is_the_same() -> None:
    head, blocks = backbone(Trained("head")), backbone(Trained("last", 1))
    assert head.features_hash == blocks.features_hash
    assert head.fixed_hash != blocks.fixed_hash
    assert backbone(Trained()).fixed_hash == ""
    assert head.features_hash != backbone(Trained("head"), IMAGENET).features_hash
    assert head.features_hash != replace(head, weights_hash="other").features_hash


def test_a_backbone_basis_bounds_features_and_lda_has_its_logits() -> None:
    data, transfer = pictures(60, seed=1), pictures(40, seed=2)
    wanted, compute = shape(Trained("head")), Compute()
    basis = make_backbone_basis(transfer.images, wanted, dims=500, compute=compute, fine=True)
    assert isinstance(basis, BackboneBasis)
    points = basis.project(transfer.images)
    covariance = torch.cov(points.T)
    assert torch.allclose(covariance, torch.eye(len(covariance)).double(), atol=1e-2)
    tight = replace(basis, limit=basis.limit / 8)
    norms = tight.features(data.images).norm(dim=1)
    assert float(norms.max()) <= tight.max_feature_norm * (1 + 1e-6)
    assert float(tight.project(data.images).norm(dim=1).max()) <= tight.max_norm
    moments = moments_of(data, basis, num_classes=3)
    state = lda_head_student([moments], basis, wanted, scale=3.0)
    model = build_model(ARCH, wanted, seed=0)
    model.load_state_dict(state)
    assert float((logits(model, data.images).argmax(1) == data.labels).float().mean()) > 0.9
    assert make_backbone_basis(transfer.images[:19], wanted, dims=5, compute=compute) is None


def test_timm_models_take_weights_from_a_file(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    arch, path = "timm:test_vit", tmp_path / "vit.pt"
    torch.manual_seed(1)
    network = timm.create_model("test_vit", pretrained=False, img_size=32)
    torch.save({"state_dict": {f"module.{k}": t for k, t in network.state_dict().items()}}, path)
    wanted = Backbone(arch, str(path), hash_weights(arch, str(path)), SMALL, Trained("lora", 2))
    model = build_model(arch, Shape(3, 3, 16, wanted), seed=0)
    assert isinstance(model, BackboneModel)
    assert {key.split(".")[-3] for key in model.state_dict() if "lora" in key} == {
        "lora_A",
        "lora_B",
    }
    plain = model.plain_state()
    assert plain.keys() == network.state_dict().keys()
    assert torch.equal(plain["blocks.0.mlp.fc1.weight"], network.blocks[0].mlp.fc1.weight)


def test_hugging_face_models_are_read_from_a_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "vit"
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
    )
    torch.manual_seed(0)
    network = transformers.ViTForImageClassification(config)
    network.save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    study = resolve_study(
        {
            "name": "small",
            "model": {"arch": f"hf:{folder}", "train": "head"},
            "targets": [0.5],
            "arms": {"fedavg": {"start": "random"}},
        }
    )
    found = Backbone.of(study)
    assert found is not None
    assert found.preprocessing == Preprocessing((0.5,) * 3, (0.5,) * 3, 32)
    model = build_model(study.model.arch, Shape(3, 3, 16, found), seed=0)
    assert isinstance(model, HeadModel)
    name = "classifier.vit.layernorm.weight"
    assert torch.equal(model.plain_state()[name], network.state_dict()[name[len("classifier.") :]])


@pytest.mark.parametrize(
    ("trained", "sentence"),
    [
        (Trained("lora", 4), "has no linear layers beside its head"),
        (
            Trained("lora", 4, ("conv5.0", "nothing")),
            r"ShuffleNetV2 has no layer 'nothing'; name linear layers or .*, such as conv1\.0, ",
        ),
        (Trained("lora", 4, ("stage2",)), "no adapters for layers of the kind Sequential; name "),
        (Trained("last", 99), "99 blocks are requested, but ShuffleNetV2 has 16"),
    ],
)
def test_parts_that_a_network_has_not_are_refused(trained: Trained, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        build_model(ARCH, shape(trained), seed=0)


def test_weights_of_another_architecture_are_refused(tmp_path: Path, weights: Path) -> None:
    other = "torchvision:mobilenet_v3_small"
    found = Backbone(other, str(weights), "hash", SMALL)
    with pytest.raises(UserError, match=r"are not those of torchvision:mobilenet_v3_small: \d+ of"):
        build_model(other, Shape(3, 3, 16, found), seed=0)
    with pytest.raises(UserError, match="has no weights 'IMAGENET1K_V3'; it has IMAGENET1K_V1"):
        hash_weights(ARCH, "IMAGENET1K_V3")
    squeeze = "torchvision:squeezenet1_1"
    with pytest.raises(UserError, match="is not a linear layer on one row per image"):
        build_model(squeeze, Shape(3, 3, 64, Backbone(squeeze, str(weights), "hash")), seed=0)
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(b"no weights")
    with pytest.raises(UserError, match=f"model.weights: {damaged} "):
        hash_weights("cnn", str(damaged))


def test_weights_that_are_not_here_are_not_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    pytest.importorskip("transformers")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network is used")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(timm, "create_model", refuse)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", "/nowhere")
    refused = (
        (ARCH, TAG, None),
        ("torchvision:shufflenet_v2_x1_0", TAG, "put https://.* at .*shufflenetv2_x1-.*pth, or"),
        ("timm:test_vit", "r160_in1k", r"`hf download timm/test_vit\.r160_in1k`, or set"),
        ("hf:owner/name", None, "`hf download owner/name`, name its folder by model.weights"),
    )
    with local_files_only():
        for arch, name, sentence in refused:
            if sentence is None:
                assert hash_weights(arch, name)
                continue
            with pytest.raises(UserError, match=f"is not on this host, .*{sentence}"):
                hash_weights(arch, name)


def test_timm_weights_are_taken_from_the_local_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timm = pytest.importorskip("timm")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--timm--test_vit.r160_in1k"
    for part in ("refs", "snapshots/1"):
        (folder / part).mkdir(parents=True)
    (folder / "refs" / "main").write_text("1")
    torch.manual_seed(4)
    network = timm.create_model("test_vit", pretrained=False).state_dict()
    save_state(folder / "snapshots" / "1" / "model.safetensors", network)
    with local_files_only():
        found = load_weights("timm:test_vit", "r160_in1k")
    assert torch.equal(found["cls_token"], network["cls_token"])


def test_the_hash_of_weights_is_of_their_content(weights: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied.safetensors"
    save_state(copied, torch.load(weights, weights_only=True))
    assert hash_weights(ARCH, str(copied)) == hash_weights(ARCH, TAG)
    assert hashlib.sha256(copied.read_bytes()).digest() != hashlib.sha256(weights.read_bytes())
