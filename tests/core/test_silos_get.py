"""What each silo gets is computed on images that its models were not trained on, and concluded."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from torch import nn

from fedkd.federation.federation import Federation
from fedkd.federation.held_out import choose_held_out, divide
from fedkd.federation.silos_get import SilosGet, conclude, log_shares
from fedkd.models.build import build_model
from fedkd.models.state import copy_state
from fedkd.report.silos_get import remarks_on_silos, silos_get_tables
from fedkd.results.diagnostics import accuracy_for_mix
from fedkd.results.folder import Results
from fedkd.training.compute import Compute
from fedkd.training.evaluate import predict
from fedkd.training.features import penultimate
from fedkd.training.weighted import weighted_metric

MODELS = ("own", "global", "adjusted", "fine_tuned")


def logits_of(federation: Federation, state: dict[str, Any], images: Any) -> torch.Tensor:
    model = build_model(federation.study.model.arch, federation.shape, seed=0)
    model.load_state_dict(state)
    return predict(model, images, compute=Compute())


def test_the_servers_images_stand_in_the_silos_class_mix(
    make_study: Any, cache_dir: Path, pool: ThreadPoolExecutor
) -> None:
    federation = Federation.load(make_study(), 0, cache_dir)
    state = copy_state(build_model("mlp", federation.shape, seed=3))
    found = SilosGet(federation).measure("fedkd", state, pool)
    assert [each["silo"] for each in found] == list(federation.study.silo_names)
    test = federation.split.test
    logits = logits_of(federation, state, test)
    everyone = torch.stack(
        [federation.data_of(name).labels.bincount(minlength=10) for name in federation.sizes]
    )
    for each, counts in zip(found, everyone, strict=True):
        assert each["num_held_out"] == int((counts[test.labels] > 0).sum())
        own = federation.pretrained(str(each["silo"])).state
        assert own is not None
        shift = ((counts + 1.0) / (counts + 1.0).sum()).log()
        shift = shift - ((everyone.sum(0) + 1.0) / (everyone.sum(0) + 1.0).sum()).log()
        for key, of in (
            ("own", logits_of(federation, own, test)),
            ("global", logits),
            ("adjusted", logits + shift),
        ):
            expected = accuracy_for_mix(of, test.labels, counts.tolist())
            assert each[key] == pytest.approx(expected, abs=2e-6)
        assert each["fine_tuned"] > each["global"], "the random model knows nothing before"


def test_a_silo_judges_by_what_it_holds_out(
    make_study: Any, cache_dir: Path, pool: ThreadPoolExecutor
) -> None:
    whole = Federation.load(make_study(), 0, cache_dir)
    federation = Federation.load(make_study({"data/silo_test": 0.25}), 0, cache_dir)
    state = copy_state(build_model("mlp", federation.shape, seed=3))
    for silo in federation.study.silo_names:
        kept, test = federation.data_of(silo), federation.test_of(silo)
        assert test is not None
        both = torch.cat([kept.images, test.images]).flatten(1).tolist()
        assert sorted(both) == sorted(whole.data_of(silo).images.flatten(1).tolist())
        assert len(test) == -(-len(both) // 4)
    found = SilosGet(federation).measure("fedkd", state, pool)
    for each in found:
        test = federation.test_of(str(each["silo"]))
        assert test is not None
        right = logits_of(federation, state, test).argmax(1) == test.labels
        assert each["num_held_out"] == len(test)
        assert each["global"] == pytest.approx(float(right.double().mean()), abs=1e-6)
    assert found == SilosGet(federation).measure("fedkd", state, pool), "the same every time"
    assert federation.fingerprint() != whole.fingerprint()


def test_one_image_is_left_to_train_on(make_study: Any, cache_dir: Path) -> None:
    data = Federation.load(make_study(), 0, cache_dir).data_of("silo-0")
    for size, share, expected in ((1, 0.5, 0), (2, 0.9, 1), (10, 0.21, 3), (10, 0.2, 2)):
        kept, test = divide("silo-0", data.take(range(size)), share, 0)
        assert len(kept) == size - expected
        assert (0 if test is None else len(test)) == expected


def test_without_any_images_nothing_is_known() -> None:
    empty = torch.tensor([], dtype=torch.int64)
    assert weighted_metric("accuracy", torch.zeros(0, 3), empty, torch.zeros(0)) is None
    known = conclude("a", 0, None, dict.fromkeys(("global", "adjusted", "fine_tuned")))
    assert (known["best"], known["loses_by"]) == (None, None)


@pytest.mark.parametrize(
    ("values", "best", "loses_by"),
    [
        ((0.5, 0.6, 0.7, 0.65), "adjusted", 0.0),
        ((0.8, 0.6, 0.7, 0.75), "own", 0.05),
        ((0.7, 0.7, 0.6, 0.5), "global", 0.0),
        ((None, 0.7, 0.6, None), "global", None),
        ((0.7, 0.6, 0.65, None), "own", 0.05),
    ],
)
def test_the_best_model_and_the_loss(values: Any, best: str, loses_by: float | None) -> None:
    own, *others = values
    found = conclude("a", 9, own, dict(zip(MODELS[1:], others, strict=True)))
    assert found["best"] == best
    assert found["loses_by"] == pytest.approx(loses_by)


@pytest.mark.parametrize("classes", [2, 4])
def test_weights_count_as_in_scikit_learn(classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(80, classes, generator=generator)
    labels = torch.randint(classes, (80,), generator=generator)
    of_class = torch.rand(classes, generator=generator).double() + 0.1
    weights = of_class[labels]
    shares, predicted = logits.double().softmax(1).numpy(), logits.argmax(1)
    options: Any = {"sample_weight": weights.numpy()}

    def ranked(score: Any) -> float:
        if classes == 2:
            return float(score(labels, shares[:, 1], **options))
        return float(np.mean([score(labels == k, shares[:, k], **options) for k in range(classes)]))

    expected = {
        "accuracy": float(weights[predicted == labels].sum() / weights.sum()),
        "macro-f1": f1_score(labels, predicted, average="macro", **options),
        "auroc": ranked(roc_auc_score),
        "average-precision": ranked(average_precision_score),
    }
    for metric, value in expected.items():
        assert weighted_metric(metric, logits, labels, weights) == pytest.approx(value)
    recalls = [float((predicted[labels == k] == k).double().mean()) for k in range(classes)]
    balanced = weighted_metric("balanced-accuracy", logits, labels, weights)
    assert balanced == pytest.approx(sum(recalls) / classes)
    one = labels == 0
    assert weighted_metric("auroc", logits[one], labels[one], weights[one]) is None


def test_weights_give_each_class_the_silos_share(make_study: Any, cache_dir: Path) -> None:
    test = Federation.load(make_study(), 0, cache_dir).split.test
    counts = torch.tensor([30, 0, 10, *[0] * 7])
    held = choose_held_out(None, test, counts)
    assert set(held.labels.tolist()) == {0, 2}
    sums = torch.zeros(10, dtype=torch.float64).index_add_(0, held.labels, held.weights)
    assert torch.allclose(sums, counts.double())
    assert log_shares(torch.tensor([1, 0])).exp().tolist() == pytest.approx([2 / 3, 1 / 3])


def test_a_model_that_does_not_end_in_a_linear_layer_has_no_features() -> None:
    images = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    assert penultimate(nn.Flatten(), images, compute=Compute()) is None
    found = penultimate(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), images, compute=Compute())
    assert found is not None
    assert found[0].shape == (3, 64)


def got(silo: str, loses_by: float) -> dict[str, Any]:
    values = {"own": 0.5 + loses_by, "global": 0.5, "adjusted": 0.4, "fine_tuned": 0.3}
    best = "own" if loses_by else "global"
    return {"silo": silo, "num_held_out": 7, **values, "best": best, "loses_by": loses_by}


def test_the_report_names_who_loses(make_summary: Any) -> None:
    summary = make_summary({"fedavg": [[0.1, 0.6]], "fedkd": [[0.6]]})
    results = Results(summary, "tiny")
    assert silos_get_tables(results) == {}
    assert remarks_on_silos(results, None) == []
    for run in summary["runs"]:
        run["silos_get"] = [got("north", 0.04), got("south", 0.0)]
    table = silos_get_tables(results)["fedkd"]
    assert table.warn == {0}
    assert table.rows[0][-2:] == ["own model", "4\u00a0%"]
    (remark,) = remarks_on_silos(results, {"arm": "fedkd"})
    assert remark.startswith("With fedkd 1 of 2 silos still lose: their own model has a higher ")
    assert "(north by 4\u00a0%)" in remark
    for run in summary["runs"]:
        run["silos_get"] = [got("north", 0.0), got("south", 0.0)]
    (remark,) = remarks_on_silos(results, {"arm": "fedkd"})
    assert remark.startswith("With fedkd no silo loses")
    summary["runs"][0]["notes"]["silos_get"] = "not measured at east: it holds out no examples"
    assert remarks_on_silos(results, {"arm": "fedkd"}) == [
        "What each silo gets is not measured at east: it holds out no examples.",
        remark,
    ]
