"""Methods of distillation on models small enough to follow by hand."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedkd.config import Consolidation
from fedkd.distillation.augmentation import MixedInputs, Mixup, mix_images
from fedkd.distillation.methods.base import DistillationData
from fedkd.distillation.methods.dml import mutual_loss
from fedkd.distillation.methods.dp_kd import pick_most_confident
from fedkd.distillation.weighting.ensemble import Ensemble, combine
from fedkd.distillation.weighting.weightings import Evidence
from fedkd.errors import UserError
from fedkd.registry import METHODS
from fedkd.training.compute import Compute
from fedkd.training.evaluate import predict
from fedkd.user_code import METHOD_SETTINGS, MethodSpec, method

CLASSES = 3


class Scale(nn.Module):
    """Logits are a 1 x 3 image's pixels through one linear layer."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3, CLASSES)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(seed)
            self.linear.weight.copy_(torch.randn(3, CLASSES, generator=generator))
            self.linear.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images.flatten(1))
        return logits


def make_data(teachers: int = 2, samples: int = 40, *, labelled: bool = True) -> DistillationData:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (samples, 1, 1, 3), generator=generator, dtype=torch.uint8)
    models = tuple(Scale(10 + index) for index in range(teachers))
    logits = torch.stack([predict(model, images, compute=Compute()) for model in models])
    return DistillationData(
        images=images,
        labels=torch.randint(0, CLASSES, (samples,), generator=generator) if labelled else None,
        target=torch.softmax(logits.mean(0), 1),
        logits=logits,
        weights=torch.full((teachers, samples), 1 / teachers, dtype=torch.float64),
        models=models,
    )


def learn(
    name: str, student: nn.Module, data: DistillationData, **settings: Any
) -> tuple[float, int]:
    epochs = []
    loss = METHODS.load(name)(
        student,
        data,
        Consolidation(method=name, **{"epochs": 6, "lr": 0.1, "batch_size": 8, **settings}),
        generator=torch.Generator().manual_seed(0),
        compute=Compute(),
        on_epoch=lambda: epochs.append(1),
    )
    return loss, len(epochs)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_the_student_alone_and_repeats_itself(name: str, labelled: bool) -> None:
    data = make_data(labelled=labelled)
    if "labels" in METHODS.spec(name).needs and not labelled:
        with pytest.raises(UserError, match="learns from labels"):
            learn(name, Scale(0), data)
        return
    teachers = [copy.deepcopy(model.state_dict()) for model in data.models]
    first, second = Scale(0), Scale(0)
    loss, epochs = learn(name, first, data)
    assert learn(name, second, data)[0] == loss
    assert epochs == 6
    assert math.isfinite(loss)
    assert torch.equal(first.linear.weight, second.linear.weight)
    assert not torch.equal(first.linear.weight, Scale(0).linear.weight)
    for model, before in zip(data.models, teachers, strict=True):
        assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())


def divergence(student: nn.Module, data: DistillationData, target: Tensor) -> float:
    log_student = torch.log_softmax(predict(student, data.images, compute=Compute()), 1)
    return float((target * (target.log() - log_student)).sum(1).mean())


@pytest.mark.parametrize("name", ["kd", "dml"])
def test_the_student_comes_to_agree_with_its_teachers(name: str) -> None:
    data = make_data(labelled=False)
    student = Scale(0)
    before = divergence(student, data, data.target)
    learn(name, student, data, epochs=30)
    assert divergence(student, data, data.target) < before / 2


def test_labels_pull_the_student() -> None:
    data = make_data()
    with_labels, without = Scale(0), Scale(0)
    learn("kd", with_labels, data, weight=0.5)
    learn("kd", without, data, weight=1.0)
    assert not torch.equal(with_labels.linear.weight, without.linear.weight)


def test_mutual_learning_of_models_that_agree_changes_nothing() -> None:
    data = make_data(teachers=1, labelled=False)
    student = copy.deepcopy(data.models[0])
    before = copy.deepcopy(student.state_dict())
    loss, _ = learn("dml", student, data)
    assert loss == pytest.approx(0.0, abs=1e-7)
    for key, tensor in student.state_dict().items():
        torch.testing.assert_close(tensor, before[key], rtol=0, atol=1e-6)


def test_mutual_loss_of_two_that_diverge_by_hand() -> None:
    """KL((0.5, 0.5) || (0.75, 0.25)) = 0.5 ln(4/3), whatever the weights of only two."""
    own = torch.tensor([[0.75, 0.25]]).log()
    said = [own, torch.tensor([[0.5, 0.5]]).log()]
    for weights in ([[0.5], [0.5]], [[0.9], [0.1]], [[1.0], [0.0]]):
        loss = mutual_loss(own, said, torch.tensor(weights, dtype=torch.float64), 0)
        assert float(loss) == pytest.approx(0.5 * math.log(4 / 3), rel=1e-5)


def test_mutual_loss_weighs_peers_per_image() -> None:
    """Three models: the mean over peers, and with weights 3 to 1 their weighted mean."""
    own = torch.tensor([[0.5, 0.5]]).log()
    said = [own, torch.tensor([[1.0, 1e-30]]).log(), own]
    mean = mutual_loss(own, said, torch.full((3, 1), 1 / 3, dtype=torch.float64), 0)
    assert float(mean) == pytest.approx(math.log(2) / 2, rel=1e-5)
    weights = torch.tensor([[0.2], [0.6], [0.2]], dtype=torch.float64)
    assert float(mutual_loss(own, said, weights, 0)) == pytest.approx(0.75 * math.log(2), rel=1e-5)


def test_mutual_loss_has_no_nan_at_extreme_logits() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], requires_grad=True)
    own = torch.log_softmax(logits, 1)
    peer = torch.log_softmax(torch.tensor([[-1e4, 1e4, 0.0], [1e4, -1e4, 0.0]]), 1)
    loss = mutual_loss(own, [own.detach(), peer], torch.full((2, 2), 0.5).double(), 0)
    loss.backward()  # type: ignore[no-untyped-call]  # PyTorch's is untyped
    assert bool(torch.isfinite(loss))
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())


def test_a_student_that_is_a_teacher_takes_its_place() -> None:
    data = make_data(teachers=2, labelled=False)
    member = DistillationData(**{**vars(data), "student": 0})
    student = copy.deepcopy(data.models[0])
    joined = copy.deepcopy(data.models[0])
    learn("dml", student, member)
    learn("dml", joined, data)
    assert not torch.equal(student.linear.weight, joined.linear.weight)


# Logits whose softmax over two classes is easy: ln p0 and ln p1.
STUDENT = torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.6, 0.4], [0.6, 0.4]]).log()
TEACHERS = torch.tensor(
    [
        [[0.9, 0.1], [0.1, 0.9], [0.55, 0.45], [0.4, 0.6]],
        [[0.7, 0.3], [0.8, 0.2], [0.5, 0.5], [0.6, 0.4]],
    ]
).log()


def test_the_surest_by_label_by_hand() -> None:
    """Of class 0: teacher 0 (0.9), teacher 1 (0.8), the student (0.6), a tie, the student's."""
    surest = pick_most_confident(STUDENT, TEACHERS, torch.tensor([0, 0, 0, 0])).exp()
    torch.testing.assert_close(surest[:, 0], torch.tensor([0.9, 0.8, 0.6, 0.6]))
    of_class_one = pick_most_confident(STUDENT, TEACHERS, torch.tensor([1, 1, 1, 1])).exp()
    torch.testing.assert_close(of_class_one[:, 1], torch.tensor([0.4, 0.9, 0.5, 0.6]))


def test_the_surest_without_labels_by_hand() -> None:
    """By the greatest probability: 0.9, 0.9 (of class 1), the student's 0.6, a tie."""
    surest = pick_most_confident(STUDENT, TEACHERS, None).exp()
    torch.testing.assert_close(surest.amax(1), torch.tensor([0.9, 0.9, 0.6, 0.6]))
    torch.testing.assert_close(surest[1], torch.tensor([0.1, 0.9]))
    torch.testing.assert_close(surest[3], torch.tensor([0.6, 0.4]))


def test_a_student_surer_than_all_stays_what_it_is() -> None:
    data = make_data(labelled=False)
    quiet = DistillationData(**{**vars(data), "logits": data.logits * 0})
    student = Scale(0)
    learn("dp-kd", student, quiet, momentum=0.0)
    torch.testing.assert_close(student.linear.weight, Scale(0).linear.weight, rtol=0, atol=1e-6)


def test_teachers_in_sequence_follow_the_order() -> None:
    data = make_data(teachers=4, labelled=False)
    orders = {}
    for order in ((0, 1, 2, 3), (3, 2, 1, 0)):
        student = Scale(0)
        turn = replace(data, order=order)
        learn("dp-kd", student, turn, sequence="sequential", epochs=2)
        orders[order] = student.linear.weight.detach().clone()
    assert not torch.equal(*orders.values())


@pytest.mark.parametrize("epochs", [1, 3])
def test_every_teacher_of_a_sequence_has_all_the_epochs(epochs: int) -> None:
    """Roth et al.: one transfer after another, each whole, from the student that the last one left.

    Against the source's formula on full batches: KL against the teacher where it is more confident
    than the student at the beginning of the transfer, and against that student elsewhere.
    """
    data = make_data(teachers=4, labelled=False)
    student, plain = Scale(0), Scale(0)
    settings = {"lr": 0.5, "momentum": 0.0, "batch_size": 40, "epochs": epochs}
    _, counted = learn("dp-kd", student, data, sequence="sequential", **settings)
    assert counted == 4 * epochs
    images = data.images.float() / 255
    for teacher in data.logits.softmax(2):
        frozen = plain(images).softmax(1).detach()
        surer = teacher.amax(1) > frozen.amax(1)
        target = torch.where(surer[:, None], teacher, frozen)
        for _ in range(epochs):
            loss = functional.kl_div(plain(images).log_softmax(1), target, reduction="batchmean")
            plain.zero_grad()
            loss.backward()
            with torch.no_grad():
                for parameter in plain.parameters():
                    parameter -= 0.5 * parameter.grad
    torch.testing.assert_close(student.linear.weight, plain.linear.weight, rtol=1e-4, atol=1e-5)


class Normalised(Scale):
    """The same with batch normalisation of the pixels before it."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.norm = nn.BatchNorm1d(3, momentum=None)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.norm(images.flatten(1)))
        return logits


def test_mutual_learning_counts_every_batch_once_in_batch_statistics() -> None:
    data = replace(make_data(labelled=False), models=(Normalised(10), Normalised(11)))
    student = Normalised(0)
    learn("dml", student, data, epochs=3)  # 40 images in batches of 8
    assert int(student.norm.num_batches_tracked) == 3 * 5
    pixels = data.images.flatten(1).float() / 255
    # With momentum None they are the plain mean over all batches.
    torch.testing.assert_close(student.norm.running_mean, pixels.mean(0))


def test_mixup_blends_images_and_targets_alike() -> None:
    images, targets = torch.rand(5, 1, 2, 2), torch.softmax(torch.randn(5, 3), 1)
    blended, said = Mixup(torch.Generator().manual_seed(4))([images, targets])
    generator = torch.Generator().manual_seed(4)
    share = torch.rand((), generator=generator)
    order = torch.randperm(5, generator=generator)
    assert torch.allclose(blended, share * images + (1 - share) * images[order])
    assert torch.allclose(said, share * targets + (1 - share) * targets[order])
    assert torch.allclose(said.sum(1), torch.ones(5))


@pytest.mark.parametrize("name", ["kd", "fine-tune"])
def test_mixup_learns_labels_too_and_only_when_asked(name: str) -> None:
    data = make_data()
    plain, mixed, again = Scale(0), Scale(0), Scale(0)
    losses = [
        learn(name, plain, data)[0],
        learn(name, mixed, data, mixup=True)[0],
        learn(name, again, data, mixup=True)[0],
    ]
    assert all(math.isfinite(loss) for loss in losses)
    assert not torch.equal(plain.linear.weight, mixed.linear.weight)
    assert torch.equal(mixed.linear.weight, again.linear.weight)


def with_mixed_inputs(
    data: DistillationData, count: int
) -> tuple[DistillationData, MixedInputs, Ensemble]:
    """Add blends, of which the teachers say what their models do."""
    mixed_inputs = mix_images(data.images, count, torch.Generator().manual_seed(2))
    logits = torch.stack([predict(m, mixed_inputs.images, compute=Compute()) for m in data.models])
    evidence = Evidence(logits, torch.ones(len(logits)))
    ensemble = combine(evidence, Consolidation())
    return data.with_mixed_inputs(mixed_inputs, ensemble), mixed_inputs, ensemble


@pytest.mark.parametrize("labelled", [True, False])
def test_blends_are_added_to_the_images_with_what_teachers_say_of_them(labelled: bool) -> None:
    data = make_data(labelled=labelled)
    more, mixed_inputs, ensemble = with_mixed_inputs(data, 3)
    assert len(more) == 4 * len(data)
    for part, before, added in (
        (more.images, data.images, mixed_inputs.images),
        (more.target, data.target, ensemble.target),
        (more.logits[0], data.logits[0], ensemble.logits[0]),
        (more.weights[1], data.weights[1], ensemble.weights[1]),
    ):
        assert torch.equal(part, torch.cat([before, added]))
    if data.labels is None:
        assert more.labels is None
    else:
        assert more.labels is not None
        assert torch.equal(more.labels[: len(data)].argmax(1), data.labels)
        torch.testing.assert_close(more.labels.sum(1), torch.ones(len(more)))
    learnt, again = Scale(0), Scale(0)
    assert math.isfinite(learn("kd", learnt, more)[0])
    learn("kd", again, more)
    assert torch.equal(learnt.linear.weight, again.linear.weight)


def test_a_student_goes_on_with_what_is_not_blended() -> None:
    """As if it learnt twice: at a fifth of the rate, and down to zero, the second time."""
    unmixed = make_data()
    data = replace(with_mixed_inputs(unmixed, 2)[0], unmixed=unmixed)
    settings: dict[str, Any] = {"mixed_inputs": 2, "epochs": 3, "lr": 0.05, "batch_size": 8}
    refined, once, twice = Scale(0), Scale(0), Scale(0)
    loss, epochs = learn("kd", refined, data, **settings, finetune_epochs=2)
    assert epochs == 5

    generator = torch.Generator().manual_seed(0)
    first = Consolidation.model_validate(settings)
    then = first.model_copy(update={"epochs": 2, "lr": 0.01, "schedule": "cosine"})
    method = METHODS.load("kd")
    method(once, replace(data, unmixed=None), first, generator=generator, compute=Compute())
    twice.load_state_dict(once.state_dict())
    last = method(twice, unmixed, then, generator=generator, compute=Compute())
    assert torch.equal(refined.linear.weight, twice.linear.weight)
    assert not torch.equal(refined.linear.weight, once.linear.weight)
    assert loss == last


def test_refinement_goes_with_blends() -> None:
    with pytest.raises(ValueError, match="finetune_epochs: follow epochs with mixed inputs"):
        Consolidation(finetune_epochs=2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "dml"}, "mixed_inputs: is not used by method dml, only by kd; leave it out"),
        ({"method": "fine-tune"}, "mixed_inputs: is not used by method fine-tune"),
        (
            {"mode": "logits", "student": "fresh"},
            "mixed_inputs: need predictions of the silos' models",
        ),
        ({"mixup": True}, "set mixup: false or mixed_inputs: 0"),
    ],
)
def test_blends_need_teachers_that_can_be_asked(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Consolidation.model_validate({**settings, "mixed_inputs": 4})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"teachers": "both"}, "teachers: both needs weighting: familiarity"),
        (
            {"teachers": "both", "weighting": "familiarity", "method": "dp-kd"},
            "it is not used by method dp-kd, only by kd; leave it out",
        ),
        (
            {
                "weighting": "familiarity",
                "familiarity": {"density": "pooled", "basis": "features"},
            },
            "density: pooled needs basis: pixels, patches, backbone or inputs",
        ),
        (
            {
                "weighting": "familiarity",
                "familiarity": {"density": "pooled"},
                "trust": "agreement",
            },
            "density: gaussian",
        ),
    ],
)
def test_what_does_not_go_together_with_densities(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Consolidation.model_validate(settings)


@pytest.mark.parametrize("name", ["dml", "dp-kd"])
def test_methods_without_mixup_refuse_it(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"mixup: is not used by method .*, only by kd and fine-tune"
    ):
        Consolidation(method=name, mixup=True)


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.parametrize(
    "keys",
    [
        {"schedule": "cosine"},
        {"schedule": "linear"},
        {"warmup": 0.5},
        {"optimizer": "adamw"},
        {"weight_decay": 0.1},
        {"clip_norm": 0.01},
    ],
    ids=str,
)
def test_every_method_uses_every_key_of_the_optimizer(name: str, keys: dict[str, Any]) -> None:
    student = Scale(0)
    learn(name, student, make_data(), epochs=2, **keys)
    assert not torch.equal(student.linear.weight, two_epochs(name))


@cache
def two_epochs(name: str) -> Tensor:
    """Return the student's weight after two epochs without further settings."""
    student = Scale(0)
    learn(name, student, make_data(), epochs=2)
    return student.linear.weight.detach()


def changed(setting: str, data: DistillationData) -> tuple[DistillationData, dict[str, Any]]:
    """Return data and settings as another value of one setting would make them."""
    tilted = torch.tensor([0.9, 0.1], dtype=torch.float64)[:, None].expand_as(data.weights)
    target = torch.softmax(data.logits[0], 1)
    options: dict[str, tuple[DistillationData, dict[str, Any]]] = {
        "temperature": (data, {"temperature": 5.0}),
        "weight": (data, {"weight": 0.9}),
        "weighting": (replace(data, weights=tilted, target=target), {}),
        "pooling": (replace(data, target=target), {}),
        "mixup": (data, {"mixup": True}),
        "sequence": (data, {"sequence": "sequential"}),
        "label_smoothing": (data, {"label_smoothing": 0.3}),
        "class_weights": (data, {"class_weights": "balanced"}),
        "augment": (data, {"augment": "trivialaugment"}),
    }
    return options[setting]


@pytest.mark.parametrize("setting", [key for key in METHOD_SETTINGS if key != "mixed_inputs"])
@pytest.mark.parametrize("name", METHODS)
def test_a_method_uses_what_its_spec_says_and_nothing_else(name: str, setting: str) -> None:
    """Another value of a setting gives another student exactly if the method declares it."""
    other = Scale(0)
    of_other, settings = changed(setting, make_data())
    # The settings are not validated: those that a method does not use would be refused.
    own = Consolidation(epochs=2, lr=0.1, batch_size=8).model_copy(
        update={"method": name, **settings}
    )
    generator = torch.Generator().manual_seed(0)
    METHODS.load(name)(other, of_other, own, generator=generator, compute=Compute())
    differs = not torch.equal(two_epochs(name), other.linear.weight)
    assert differs == (setting in METHODS.spec(name).uses)


@pytest.mark.parametrize("need", ["labels", "models"])
@pytest.mark.parametrize("name", METHODS)
def test_a_method_needs_what_its_spec_says(name: str, need: str) -> None:
    """Without labels a method refuses, and without models its student has no one to learn from."""
    without: dict[str, Any] = {"labels": None} if need == "labels" else {"models": ()}
    data = replace(make_data(), **without)
    student, whole = Scale(0), Scale(0)
    learn(name, whole, make_data())
    try:
        learn(name, student, data)
    except (UserError, RuntimeError):
        assert need in METHODS.spec(name).needs
        return
    if need == "models":
        same = torch.equal(student.linear.weight, whole.linear.weight)
        assert same == ("models" not in METHODS.spec(name).needs)
    else:
        assert "labels" not in METHODS.spec(name).needs


@pytest.mark.parametrize(
    ("settings", "refusal"),
    [
        ({"temperature": 2}, r"temperature: .*declare it: @fedkd.method\(uses={'temperature'}\)"),
        ({"weight": 0.7}, "weight: is not used by method own:learn"),
        ({"weighting": "confidence"}, "weighting: is not used"),
        ({"max_weight": 0.5}, "max_weight: is not used .*uses={'weighting'}"),
        ({"pooling": "logits"}, "pooling: is not used"),
        ({"mixup": True}, "mixup: is not used"),
        ({"mixed_inputs": 2}, "mixed_inputs: is not used"),
        ({"sequence": "sequential"}, "sequence: is not used"),
        ({"order": "random"}, "order: is not used"),
        ({"teachers": "both", "weighting": "familiarity"}, "teachers: both changes the target"),
        ({"teachers": "validation"}, "learns from labels alone"),
    ],
)
def test_a_method_that_declares_nothing_uses_no_setting(
    settings: dict[str, Any], refusal: str
) -> None:
    own = Consolidation(method="own:learn", **settings)
    with pytest.raises(ValueError, match=refusal):
        own.check_method(MethodSpec())
    Consolidation(method="own:learn").check_method(MethodSpec())


def test_a_method_of_ones_own_may_use_any_setting() -> None:
    spec = MethodSpec(uses=METHOD_SETTINGS)
    for settings in (
        {"temperature": 2, "weight": 0.7, "weighting": "confidence", "mixup": True},
        {"mixed_inputs": 2, "finetune_epochs": 1, "pooling": "median", "max_weight": 0.5},
        {"sequence": "sequential", "order": "random"},
        {"teachers": "both", "weighting": "familiarity"},
    ):
        Consolidation(method="own:learn", **settings).check_method(spec)
    trains_models = Consolidation(method="own:learn", mode="logits", student="fresh")
    with pytest.raises(ValueError, match="trains the silos' models"):
        trains_models.check_method(MethodSpec(needs={"models"}))


def test_a_declaration_with_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="declares 'temperatur', not one of temperature, weight"):
        method(uses={"temperatur"})
    with pytest.raises(ValueError, match="declares 'logits', not one of labels, models"):
        method(needs={"logits"})
