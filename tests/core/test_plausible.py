"""Teachers that no training makes are left out; honest ones stay, however weak or one-sided."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedkd.data.images import Images
from fedkd.distillation.teachers import Teacher, Teachers
from fedkd.distillation.weighting.plausible import exclude_implausible
from fedkd.errors import FedKDError
from fedkd.models.build import Shape, build_model
from fedkd.models.state import State, copy_state
from fedkd.training.compute import Compute

CLASSES, SIDE = 10, 8
SHAPE = Shape(CLASSES, 1, SIDE)
EVEN = (20,) * CLASSES


def data(per_class: int = 30) -> Images:
    """Return images whose class is the row and column that is white."""
    labels = torch.arange(CLASSES).repeat(per_class)
    noise = torch.Generator().manual_seed(0)
    images = torch.randint(0, 60, (len(labels), 1, SIDE, SIDE), generator=noise, dtype=torch.uint8)
    for index, label in enumerate(labels.tolist()):
        images[index, 0, label % SIDE, label // SIDE * 4 :] = 255
    return Images(images, labels)


def trained(classes: tuple[int, ...], seed: int = 0) -> State:
    """Return a model that was trained on these classes alone."""
    from fedkd.training.loop import train_supervised
    from fedkd.training.optimizer import OptimizerSettings

    own = data()
    kept = own.take(torch.isin(own.labels, torch.tensor(classes)).nonzero()[:, 0])
    model = build_model("mlp", SHAPE, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = OptimizerSettings(epochs=6, batch_size=32, lr=0.1, momentum=0.9)
    train_supervised(model, kept, optimizer=optimizer, generator=generator, compute=Compute())
    return copy_state(model)


@pytest.fixture(scope="module")
def good() -> State:
    return trained(tuple(range(CLASSES)))


def teacher(silo: str, state: State, counts: tuple[int, ...] = EVEN) -> Teacher:
    return Teacher(silo, "mlp", max(1, sum(counts)), state, class_counts=counts)


def exclude(*members: Teacher, validation: bool = True) -> dict[str, str]:
    labelled = data() if validation else data().take(torch.tensor([], dtype=torch.int64))
    teachers = Teachers(members, SHAPE, Compute())
    kept, reasons = exclude_implausible(teachers, transfer=data(), validation=labelled)
    assert [t.silo for t in kept.members] == [t.silo for t in members if t.silo not in reasons]
    return reasons


def filled(state: State, value: float) -> State:
    return {key: torch.full_like(tensor, value) for key, tensor in state.items()}


def for_class(state: State, label: int) -> State:
    """Return a model of small weights that predicts one class for all images."""
    last = list(state)[-1]
    constant = filled(state, 0.0)
    constant[last][label] = 5.0
    return constant


def leaning(state: State, label: int) -> State:
    """Return a good model with so great a bias that it predicts one class for all images."""
    bias = state[list(state)[-1]].clone()
    bias[label] += 500
    return {**state, list(state)[-1]: bias}


def permuted(state: State) -> State:
    """Return a good model whose classes were renamed."""
    weight, bias = list(state)[-2:]
    return {**state, weight: state[weight].roll(1, 0), bias: state[bias].roll(1, 0)}


@pytest.mark.parametrize("validation", [True, False])
@pytest.mark.parametrize("value", [1e4, -1e4, 1e17, 50.0])
def test_absurd_weights_are_left_out(good: State, value: float, validation: bool) -> None:
    reasons = exclude(teacher("a", good), teacher("b", filled(good, value)), validation=validation)
    assert list(reasons) == ["b"]
    assert ("logits exceed 10000" if value > 0 else "weights are implausibly large") in reasons["b"]


def test_weights_are_absurd_beside_others_alone(good: State) -> None:
    """Some models are large by nature; and small ones accuse nobody."""
    scale = {key: 200 * tensor for key, tensor in good.items()}
    tiny = {key: tensor / 1e6 for key, tensor in good.items()}
    for other in (scale, tiny):
        kept = [teacher(silo, other) for silo in "abc"]
        assert (
            "its weights are implausibly large" not in exclude(*kept, teacher("d", good)).values()
        )


@pytest.mark.parametrize("validation", [True, False])
def test_a_constant_among_others_is_left_out(good: State, validation: bool) -> None:
    constant = teacher("b", for_class(good, 3))
    others = (teacher("a", good), teacher("c", good))
    reasons = exclude(*others, constant, validation=validation)
    assert reasons == {"b": "it predicts the same class for all examples"}
    withheld = teacher("b", for_class(good, 3), ())
    assert list(exclude(*others, withheld, validation=validation)) == ["b"]
    assert exclude(others[0], constant, validation=validation) == {}, "one of two proves nothing"


def test_a_silo_of_mostly_one_class_is_honest_when_it_predicts_that_class(good: State) -> None:
    counts = tuple(100 if label == 3 else 5 for label in range(CLASSES))
    others = (teacher("a", good), teacher("c", good))
    assert exclude(*others, teacher("b", leaning(good, 3), counts)) == {}
    assert list(exclude(*others, teacher("b", leaning(good, 4), counts))) == ["b"]
    assert list(exclude(*others, teacher("b", for_class(good, 3), counts))) == ["b"], "no image"


@pytest.mark.parametrize("classes", [(0,), (1, 7), (2, 3, 4), tuple(range(CLASSES))])
@pytest.mark.parametrize("withheld", [False, True])
@pytest.mark.parametrize("validation", [False, True])
def test_honest_silos_of_few_classes_stay(
    good: State, classes: tuple[int, ...], withheld: bool, validation: bool
) -> None:
    counts = tuple(40 if label in classes else 0 for label in range(CLASSES))
    own = teacher("b", trained(classes, seed=1), () if withheld else counts)
    assert exclude(teacher("a", good), teacher("c", good), own, validation=validation) == {}


def test_a_lead_that_no_training_makes_is_left_out_without_class_counts(good: State) -> None:
    others = (teacher("a", good), teacher("c", good))
    assert list(exclude(*others, teacher("b", leaning(good, 3), ()))) == ["b"]


def test_a_teacher_below_chance_is_left_out_by_labels_alone(good: State) -> None:
    others = (teacher("a", good), teacher("c", good))
    wrong = teacher("b", permuted(good))
    assert exclude(*others, wrong) == {"b": "it is no better than chance"}
    assert exclude(*others, wrong, validation=False) == {}
    assert list(exclude(*others, teacher("b", permuted(good), ()))) == ["b"]


def test_where_most_are_at_chance_nobody_is_left_out(good: State) -> None:
    wrong = [teacher(silo, permuted(good)) for silo in "bc"]
    assert exclude(teacher("a", good), *wrong) == {}


def test_predictions_are_judged_where_models_are_not_shared() -> None:
    clear = data().labels[:, None] == torch.arange(CLASSES)

    def of(silo: str, logits: Tensor) -> Teacher:
        return Teacher(silo, "mlp", 5, logits=logits.float(), class_counts=EVEN)

    constant = torch.zeros(len(clear), CLASSES)
    constant[:, 2] = 1
    assert list(exclude(of("a", clear), of("b", constant), of("c", 3 * clear))) == ["b"]


def test_none_left_is_an_error_in_words(good: State) -> None:
    with pytest.raises(FedKDError, match=r"no silo's .* model is plausible \(a: its logits"):
        exclude(teacher("a", filled(good, 1e4)), teacher("b", filled(good, 1e4)))
