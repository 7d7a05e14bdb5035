"""What a study may hold: each refusal names the key's path, what is wrong and what is valid."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from fedkd.config import Familiarity, Study
from fedkd.config.part_defaults import PART_RATES, PRETRAINED_RATES, PRETRAINED_STUDENT
from fedkd.config.study_file import dump_study, parse_study
from fedkd.errors import UserError

FEDKD = {"start": "consolidated", "consolidation": {"weighting": "familiarity"}}


def make_data(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a small valid study with values at dotted paths replaced."""
    data: dict[str, Any] = {
        "name": "small",
        "partition": {"scheme": "label-dirichlet", "silos": 4, "alpha": 0.1},
        "targets": [0.5, 0.9],
        "arms": {"fedavg": {"start": "random"}, "fedkd": dict(FEDKD, rounds={"lr": 0.1})},
    }
    for path, value in (changes or {}).items():
        here = data
        *parents, last = path.split("/")
        for parent in parents:
            here[parent] = dict(here.get(parent, {}))
            here = here[parent]
        here[last] = value
    return data


def discriminant(**changes: Any) -> dict[str, Any]:
    """Return the consolidation of a student in closed form, whose familiarity is changed."""
    familiarity = {"density": "pooled", "basis": "patches", "filters": 200, **changes}
    return {
        "student": "lda-head",
        "weighting": "familiarity",
        "familiarity": familiarity,
    }


def refusal(changes: dict[str, Any]) -> str:
    """Return the message with which a changed study is refused."""
    with pytest.raises(UserError) as caught:
        parse_study(yaml.safe_dump(make_data(changes)), origin="s.yaml")
    assert caught.value.exit_code == 2
    return str(caught.value)


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "a metric that is none": ({"metric": "auc"}, "s.yaml: metric: "),
    "a metric that sums do not give": (
        {
            "metric": "auroc",
            "data": {"source": "none", "transfer": {"source": "noise"}},
            "partition": {"scheme": "given", "silos": {"a": "folder:a", "b": "folder:b"}},
        },
        "s.yaml: metric: auroc ranks the scores of all test examples together",
    ),
    "unknown key at the top": ({"arm": {}}, "s.yaml: arm: unknown key (did you mean 'arms'?)"),
    "unknown key below": (
        {"rounds/local_epoch": 2},
        "s.yaml: rounds.local_epoch: unknown key (did you mean 'local_epochs'?)",
    ),
    "unknown key of an arm's rounds": (
        {"arms/fedkd/rounds": {"mx": 1}},
        "s.yaml: arms.fedkd.rounds.mx: unknown key (did you mean 'max'?)",
    ),
    "unknown key without a near one": (
        {"model/zzz": 1},
        "s.yaml: model.zzz: unknown key; known are weights, preprocessing",
    ),
    "key of another scheme": (
        {"partition": {"scheme": "iid", "alpha": 0.1}},
        "s.yaml: partition.alpha: unknown key",
    ),
    "key that is called like the scheme": (
        {"partition": {"scheme": "iid", "iid": 0.1}},
        "s.yaml: partition.iid: unknown key",
    ),
    "target too high": ({"targets": [0.5, 1.5]}, "s.yaml: targets.1: 1.5 is more than 1"),
    "target of nothing": ({"targets": [0]}, "s.yaml: targets.0: 0 is not more than 0"),
    "target not a number": ({"targets": ["high"]}, "s.yaml: targets.0: 'high' is not a number"),
    "no target": ({"targets": []}, "s.yaml: targets: needs at least 1 entry but has 0"),
    "one bare target": ({"targets": 0.5}, "s.yaml: targets: 0.5 is not a list"),
    "too many targets": ({"targets": [0.5] * 21}, "s.yaml: targets: has more than 20 entries"),
    "relative target too high": (
        {"targets": {"of_baseline_best": [2]}},
        "s.yaml: targets.of_baseline_best.0: 2 is more than 1",
    ),
    "relative targets misspelt": (
        {"targets": {"of_baseline": [0.9]}},
        "s.yaml: targets.of_baseline: unknown key (did you mean 'of_baseline_best'?)",
    ),
    "relative targets empty": (
        {"targets": {}},
        "s.yaml: targets.of_baseline_best: is missing",
    ),
    "relative targets without a baseline": (
        {"targets": {"of_baseline_best": [0.9]}, "baselines": []},
        "s.yaml: targets.of_baseline_best: needs at least one arm under baselines",
    ),
    "no silos": ({"partition/silos": 0}, "s.yaml: partition.silos: 0 is less than 1"),
    "half a silo": ({"partition/silos": 2.5}, "s.yaml: partition.silos: 2.5 is not a whole number"),
    "concentration of zero": ({"partition/alpha": 0}, "partition.alpha: 0 is not more than 0"),
    "unknown scheme": (
        {"partition/scheme": "label-dirichlt"},
        (
            "s.yaml: partition.scheme: 'label-dirichlt' is not one of iid, quantity, "
            "label-dirichlet, label-shards, label-dominant, given, indices, by-column, deployed, "
            "package.module:function (did you mean 'label-dirichlet'?)"
        ),
    ),
    "no scheme": ({"partition": {"silos": 3}}, "s.yaml: partition.scheme: is missing"),
    "scheme as the partition": (
        {"partition": "iid"},
        "s.yaml: partition: 'iid' is not a mapping of keys to values",
    ),
    "unknown architecture": (
        {"model/arch": "lenet"},
        "s.yaml: model.arch: unknown architecture 'lenet' (did you mean 'lenet5'?); known are cnn",
    ),
    "unknown architecture of a silo": (
        {"model/per_silo": {"silo-1": "cn"}},
        "s.yaml: model.per_silo.silo-1: unknown architecture 'cn' (did you mean 'cnn'?)",
    ),
    "architecture that is a switch": (
        {"model/per_silo": {"silo-1": True}},
        "s.yaml: model.per_silo.silo-1: true is not text",
    ),
    "unknown source": (
        {"data/source": "cifar"},
        "s.yaml: data.source: unknown data source 'cifar' (did you mean 'cifar10'?)",
    ),
    "source without a path": (
        {"data/source": "folder:"},
        "s.yaml: data.source: data source 'folder:' must be followed by PATH",
    ),
    "unknown transfer source": (
        {"data/transfer": {"source": "mnst"}},
        "s.yaml: data.transfer.source: unknown data source 'mnst' (did you mean 'mnist'?)",
    ),
    "unknown weighting": (
        {"arms/fedkd/consolidation/weighting": "familiar"},
        (
            "s.yaml: arms.fedkd.consolidation.weighting: unknown weighting 'familiar' "
            "(did you mean 'familiarity'?)"
        ),
    ),
    "unknown method": (
        {"arms/fedkd/consolidation/method": "kdd"},
        (
            "s.yaml: arms.fedkd.consolidation.method: unknown distillation method 'kdd' "
            "(did you mean 'kd'?)"
        ),
    ),
    "unknown student": (
        {"arms/fedkd/consolidation/student": "averge"},
        (
            "s.yaml: arms.fedkd.consolidation.student: 'averge' is not one of average, best, "
            "worst, random, fresh, lda-head (did you mean 'average'?)"
        ),
    ),
    "unknown start": (
        {"arms/fedavg/start": "avrage"},
        (
            "s.yaml: arms.fedavg.start: unknown start 'avrage' (did you mean 'average'?); known "
            "are random, checkpoint, average, best, consolidated, package.module:function"
        ),
    ),
    "options without a function of one's own": (
        {"arms/fedavg/options": {"lr": 1}},
        "s.yaml: arms.fedavg: options are for a start or strategy of your own",
    ),
    "unknown strategy": (
        {"arms/fedavg/strategy": "fedavgg"},
        "s.yaml: arms.fedavg.strategy: unknown strategy 'fedavgg' (did you mean 'fedavg'?)",
    ),
    "arm without a start": (
        {"arms/fedavg": {}},
        "s.yaml: arms.fedavg.start: is missing",
    ),
    "arm without keys": (
        {"arms/fedavg": None},
        "s.yaml: arms.fedavg: is empty, but a mapping of keys to values is expected",
    ),
    "no arms": ({"arms": {}}, "s.yaml: arms: needs at least 1 entry but has 0"),
    "arms as a list": (
        {"arms": ["fedavg"]},
        "s.yaml: arms: is a list, but a mapping of keys to values is expected",
    ),
    "NaN": ({"rounds/lr": float("nan")}, "s.yaml: rounds.lr: nan is not a finite number"),
    "infinity": ({"rounds/timeout": float("inf")}, "rounds.timeout: inf is not a finite number"),
    "NaN in a list": ({"targets": [float("nan")]}, "s.yaml: targets.0: nan is not a finite number"),
    "infinite count": ({"rounds/max": float("inf")}, "rounds.max: inf is not a finite number"),
    "huge count": ({"rounds/max": 10**90}, "rounds.max: 1000"),
    "yes for a number": (
        {"rounds/max": True},
        "s.yaml: rounds.max: true is not valid here: YAML reads a bare yes, no, on or off",
    ),
    "no for a fraction": ({"data/test": False}, "s.yaml: data.test: false is not valid here"),
    "number for a switch": (
        {"data/transfer": {"labelled": 2}},
        "s.yaml: data.transfer.labelled: 2 is not true or false",
    ),
    "number for a name": ({"name": 2024}, "s.yaml: name: 2024 is not text; put it in quotes"),
    "word for a number": (
        {"rounds/max": "many"},
        "s.yaml: rounds.max: 'many' is not a whole number",
    ),
    "nothing for a number": (
        {"rounds/max": None},
        "s.yaml: rounds.max: is empty, but a whole number is expected",
    ),
    "nothing for a section": (
        {"rounds": None},
        "s.yaml: rounds: is empty, but a mapping of keys to values is expected",
    ),
    "number of workers": ({"engine/workers": 0}, "s.yaml: engine.workers: 0 is less than 1"),
    "word for workers": (
        {"engine/workers": "all"},
        "s.yaml: engine.workers: 'all' is neither auto nor a whole number",
    ),
    "device": ({"engine/device": "gpu"}, "s.yaml: engine.device: 'gpu' is not cpu, cuda or cuda:N"),
    "engine's name": (
        {"engine/name": "a b"},
        "s.yaml: engine.name: 'a b' is not a valid engine name",
    ),
    "bad study name": ({"name": "My Study"}, "s.yaml: name: 'My Study' is not a valid name"),
    "bad arm name": (
        {"arms/Fed_Avg": {"start": "random"}},
        "s.yaml: arms.Fed_Avg: 'Fed_Avg' is not a valid name: use lower-case letters",
    ),
    "arm name with a line break": (
        {"arms/a\nb": {"start": "random"}},
        "s.yaml: arms.'a\\nb': 'a\\nb' is not a valid name",
    ),
    "fedkd that does not consolidate": (
        {"arms/fedkd-x": {"start": "average"}},
        "s.yaml: arms.fedkd-x: the name says that it consolidates but start is 'average'",
    ),
    "consolidation under another name": (
        {"arms/other": FEDKD},
        "s.yaml: arms.other: an arm that consolidates is named fedkd, fedkd-... or control-...",
    ),
    "consolidation without the start": (
        {"arms/fedavg/consolidation": {}},
        "s.yaml: arms.fedavg: consolidation is set but start is 'random'",
    ),
    "average student of another architecture": (
        {"arms/fedkd/arch": "mlp"},
        (
            "s.yaml: arms.fedkd.consolidation.student: average needs a silo whose model is mlp, "
            "but they are cnn; use student: fresh"
        ),
    ),
    "average start of another architecture": (
        {"arms": {"mean": {"start": "average", "arch": "mlp"}}},
        "s.yaml: arms.mean.start: average needs a silo whose model is mlp, but they are cnn",
    ),
    "fine-tuning without labels": (
        {"arms/fedkd/consolidation": {"method": "fine-tune"}},
        "s.yaml: arms.fedkd.consolidation.method: fine-tune learns from labels",
    ),
    "mutual learning of models that do not come": (
        {"arms/fedkd/consolidation": {"method": "dml", "mode": "logits", "student": "fresh"}},
        "s.yaml: arms.fedkd.consolidation: method: dml trains the silos' models",
    ),
    "sequence of a method that has none": (
        {"arms/fedkd/consolidation": {"sequence": "sequential"}},
        "s.yaml: arms.fedkd.consolidation: sequence: is not used by method kd, only by dp-kd",
    ),
    "densities for a method that trains models": (
        {
            "arms/fedkd/consolidation": {
                "teachers": "densities",
                "weighting": "familiarity",
                "method": "dml",
            }
        },
        "s.yaml: arms.fedkd.consolidation: teachers: densities gives predictions only, but",
    ),
    "teachers judged without validation data": (
        {"data/validation": 0, "arms/fedkd/consolidation/select": {"top": 2}},
        "s.yaml: arms.fedkd: compares models on validation data",
    ),
    "student on its silo that is no silo's": (
        {"data/transfer": {"source": "student-silo"}},
        "s.yaml: arms.fedkd.consolidation.student: average is not the model of a silo",
    ),
    "densities of private images": (
        {
            "data/transfer": {"source": "student-silo"},
            "arms/fedkd/consolidation": {"weighting": "familiarity", "student": "best"},
        },
        "s.yaml: arms.fedkd.consolidation.weighting: familiarity needs transfer examples",
    ),
    "control that starts from the silos' models": (
        {
            "arms/fedkd/consolidation": {
                "teachers": "densities",
                "weighting": "familiarity",
                "student": "average",
            },
        },
        "s.yaml: arms.fedkd.consolidation: student: average is made of the silos' models, but",
    ),
    "validation labels on a silo": (
        {
            "data/transfer": {"source": "student-silo"},
            "arms/fedkd/consolidation": {
                "teachers": "validation",
                "method": "fine-tune",
            },
        },
        "s.yaml: arms.fedkd.consolidation.student: fresh is not the model of a silo",
    ),
    "features of an architecture that no silo has": (
        {
            "arms/fedkd/arch": "lenet5",
            "arms/fedkd/consolidation": {
                "weighting": "familiarity",
                "student": "fresh",
                "familiarity": {"basis": "features"},
            },
        },
        "s.yaml: arms.fedkd.consolidation.familiarity.basis: features averages silos' models",
    ),
    "fusion without a transfer set on the server": (
        {
            "data/transfer": {"source": "student-silo"},
            "arms": {"fused": {"start": "random", "strategy": "feddf"}},
        },
        "s.yaml: arms.fused.strategy: feddf distils on the server",
    ),
    "unknown method, near a known one": (
        {"arms/fedkd/consolidation/method": "dmll"},
        "unknown distillation method 'dmll' (did you mean 'dml'?); known are kd, dml, dp-kd",
    ),
    "best start without validation data": (
        {"data/validation": 0, "arms/top": {"start": "best"}},
        "s.yaml: arms.top: compares models on validation data, but data.validation is 0",
    ),
    "densities without familiarity": (
        {"arms/fedkd/consolidation": {"teachers": "densities"}},
        "s.yaml: arms.fedkd.consolidation: teachers: densities needs weighting: familiarity",
    ),
    "average student of silos that send predictions": (
        {"arms/fedkd/consolidation/mode": "logits"},
        "s.yaml: arms.fedkd.consolidation: student: average needs the silos' models",
    ),
    "discriminant without moments of what filters see": (
        {"arms/fedkd/consolidation": {"student": "lda-head", "weighting": "familiarity"}},
        "student: lda-head is computed from class sums of features: set weighting: ",
    ),
    "discriminant behind too few filters": (
        {
            "arms/fedkd/arch": "patch-features",
            "arms/fedkd/consolidation": discriminant(filters=100),
        },
        "student: lda-head is patch-features with 200 filters; set familiarity.filters: 200",
    ),
    "discriminant in an arm of another architecture": (
        {"arms/fedkd/consolidation": discriminant()},
        "but the arm's model is cnn; set arms.fedkd.arch: patch-features",
    ),
    "no epochs for a student that needs some": (
        {"arms/fedkd/consolidation": {"epochs": 0}},
        "s.yaml: arms.fedkd.consolidation: epochs: 0 is for student: lda-head",
    ),
    "no epochs for blends": (
        {"arms/fedkd/consolidation": {**discriminant(), "epochs": 0, "mixed_inputs": 2}},
        "s.yaml: arms.fedkd.consolidation: epochs: 0 is for student: lda-head",
    ),
    "unknown baseline": (
        {"baselines": ["fedavgg"]},
        "s.yaml: baselines: no arm is named 'fedavgg' (did you mean 'fedavg'?)",
    ),
    "one bare baseline": ({"baselines": "fedavg"}, "s.yaml: baselines: 'fedavg' is not a list"),
    "unknown silo's architecture": (
        {"model/per_silo": {"silo-4": "cnn"}},
        "s.yaml: model.per_silo: no silo is named 'silo-4'; they are silo-0 to silo-3",
    ),
    "unknown silo's checkpoint": (
        {"pretraining/checkpoints": {"hospital": "a.safetensors"}},
        "s.yaml: pretraining.checkpoints: no silo is named 'hospital'",
    ),
    "optimizer that is not known": (
        {"pretraining/optimizer": "lamb"},
        "s.yaml: pretraining.optimizer: 'lamb' is not",
    ),
    "augmentation that is not known": (
        {"rounds/augment": "flip"},
        "s.yaml: rounds.augment: unknown augmentation 'flip' (did you mean 'flip-crop'?)",
    ),
    "class weights beside a prior": (
        {"rounds/class_weights": "balanced", "arms/fedkd/rounds/local_loss": "logit-adjusted"},
        "s.yaml: arms.fedkd.rounds.class_weights: is not used by local_loss logit-adjusted; leave",
    ),
    "augmentation that the method does not use": (
        {"arms/fedkd/consolidation": {"method": "dp-kd", "augment": "flip-crop"}},
        "augment: is not used by method dp-kd, only by kd and fine-tune; leave it out",
    ),
    "label smoothing that the method does not use": (
        {"arms/fedkd/consolidation": {"method": "dml", "label_smoothing": 0.1}},
        "label_smoothing: is not used by method dml, only by kd and fine-tune; leave it out",
    ),
    "label smoothing without labels": (
        {"data/transfer": {"labelled": False}, "arms/fedkd/consolidation/label_smoothing": 0.1},
        (
            "s.yaml: arms.fedkd.consolidation.label_smoothing: is about labels, but "
            "data.transfer.labelled is false; leave it out"
        ),
    ),
    "validation part without an early stop": (
        {"pretraining/validation": 0.2},
        "s.yaml: pretraining: validation: is held out for an early stop; set patience",
    ),
    "warm-up of a whole training": (
        {"pretraining/warmup": 1},
        "s.yaml: pretraining.warmup: 1 is not less than 1",
    ),
    "statistics of a transfer set that is on a silo": (
        {
            "model/batch_norm": "recalibrate",
            "data/transfer": {"source": "student-silo"},
            "arms": {"fedavg": {"start": "random"}},
        },
        (
            "model.batch_norm: recalibrate computes statistics on the server's transfer set, but "
            "data.transfer.source is student-silo; name a source under data.transfer.source"
        ),
    ),
    "seed twice": ({"seeds": [0, 1, 0]}, "s.yaml: seeds: [0, 1, 0] names a seed twice"),
    "negative seed": ({"seeds": [0, -1]}, "s.yaml: seeds.1: -1 is less than 0"),
    "large seed": ({"seeds": [2**31]}, "s.yaml: seeds.0: 2147483648 is not less than 2147483648"),
    "no seeds": ({"seeds": []}, "s.yaml: seeds: needs at least 1 entry but has 0"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_impossible_study_is_refused_with_path_and_reason(case: str) -> None:
    changes, expected = REFUSALS[case]
    message = refusal(changes)
    assert expected in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("key", ["name", "targets", "arms"])
def test_missing_key_is_named(key: str) -> None:
    data = make_data()
    del data[key]
    with pytest.raises(UserError, match=rf"^s.yaml: {key}: is missing$"):
        parse_study(yaml.safe_dump(data), origin="s.yaml")


def test_every_problem_has_its_own_line() -> None:
    message = refusal({"rounds": {"max": 0, "lr": -1}, "seeds": [-1], "arms/fedavg/start": "x"})
    assert message.splitlines() == [
        "s.yaml: rounds.lr: -1 is not more than 0",
        "s.yaml: rounds.max: 0 is less than 1",
        (
            "s.yaml: arms.fedavg.start: unknown start 'x'; known are random, checkpoint, "
            "average, best, "
            "consolidated, package.module:function"
        ),
        "s.yaml: seeds.0: -1 is less than 0",
    ]


def test_endless_problems_are_counted_not_listed() -> None:
    lines = refusal({"seeds": [-1] * 50}).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "and 30 more problems"


def test_numbers_too_long_to_print_are_refused_all_the_same() -> None:
    from pydantic import ValidationError

    from fedkd.util.error_messages import to_user_error

    data = make_data({"rounds/max": 10**5000})
    with pytest.raises(ValidationError) as caught:
        Study.model_validate(data)
    message = str(to_user_error(caught.value, data, origin="s"))
    assert message == "s: rounds.max: a number of thousands of digits is more than 1000000"


def test_defaults_are_filled() -> None:
    study = Study.model_validate(make_data())
    assert study.baselines == ["fedavg"]
    assert study.seeds == [0, 1, 2]
    assert study.silo_names == ("silo-0", "silo-1", "silo-2", "silo-3")
    assert study.absolute_targets == [0.5, 0.9]
    assert study.engine.name == "inline"


def test_consolidated_arm_needs_no_consolidation_key() -> None:
    study = Study.model_validate(make_data({"arms/fedkd": {"start": "consolidated"}}))
    consolidation = study.arms["fedkd"].consolidation
    assert consolidation is not None
    assert (consolidation.method, consolidation.weighting) == ("kd", "equal")
    assert not consolidation.uses_densities


def test_no_baseline_without_an_arm_called_fedavg() -> None:
    study = Study.model_validate(make_data({"arms": {"mean": {"start": "average"}}}))
    assert study.baselines == []


def test_arm_overrides_only_the_rounds_that_it_names() -> None:
    study = Study.model_validate(make_data({"rounds": {"max": 7, "lr": 0.2}}))
    assert study.rounds_of("fedavg") == study.rounds
    assert study.rounds_of("fedkd") == study.rounds.model_copy(update={"lr": 0.1})


def test_arm_needs_pretrained_models_unless_it_starts_at_random() -> None:
    assert Study.model_validate(make_data()).needs_pretrained
    assert not Study.model_validate(
        make_data({"arms": {"fedavg": {"start": "random"}}})
    ).needs_pretrained


def test_fresh_student_may_have_teachers_of_other_architectures() -> None:
    study = Study.model_validate(
        make_data(
            {"model/per_silo": {"silo-1": "mlp"}, "arms/fedkd/consolidation/student": "fresh"}
        )
    )
    assert study.arch_of("silo-1") == "mlp"
    assert study.arch_of("silo-2") == "cnn"


def test_relative_targets_have_no_absolute_values() -> None:
    study = Study.model_validate(make_data({"targets": {"of_baseline_best": [0.9]}}))
    assert study.absolute_targets is None


@pytest.mark.parametrize(
    ("settings", "scale"),
    [({}, 5.0), ({"density": "knn"}, 3.0), ({"density": "knn", "scale": 2}, 2.0)],
)
def test_scale_follows_the_density_unless_given(settings: dict[str, Any], scale: float) -> None:
    assert Familiarity.model_validate(settings).effective_scale == scale


def test_validating_changes_nothing_of_the_data() -> None:
    data = make_data()
    before = yaml.safe_dump(data)
    Study.model_validate(data)
    assert yaml.safe_dump(data) == before


FEATURES = {"weighting": "familiarity", "familiarity": {"basis": "features"}}


@pytest.mark.parametrize(
    ("arm", "transfer", "exchanges"),
    [
        ({"start": "random"}, {}, 0),
        ({"start": "average"}, {}, 1),
        ({"start": "best"}, {"source": "student-silo"}, 1),
        ({"consolidation": {}}, {}, 1),
        ({"consolidation": {"weighting": "familiarity"}}, {}, 1),
        ({"consolidation": FEATURES}, {}, 2),
        ({"consolidation": FEATURES}, {"size": 20}, 2),
        ({"consolidation": FEATURES}, {"size": 19}, 1),
        ({"consolidation": {**FEATURES, "weighting": "equal"}}, {}, 1),
        ({"consolidation": {"student": "best"}}, {"source": "student-silo"}, 2),
        ({"consolidation": {"teachers": "validation", "method": "fine-tune"}}, {}, 0),
        ({"consolidation": {"teachers": "densities", "weighting": "familiarity"}}, {}, 1),
    ],
)
def test_what_a_start_costs(arm: dict[str, Any], transfer: dict[str, Any], exchanges: int) -> None:
    name = "fedkd" if "consolidation" in arm else "new"
    arms = {"fedavg": {"start": "random"}, name: {"start": "consolidated", **arm}}
    data = make_data({"arms": arms, "data/transfer": transfer})
    assert parse_study(yaml.safe_dump(data)).exchanges_before_round_1(name) == exchanges


def test_architectures_are_those_of_silos_and_arms() -> None:
    changes = {
        "model/per_silo": {"silo-1": "lenet5"},
        "arms/new": {"start": "random", "arch": "mlp"},
    }
    study = parse_study(yaml.safe_dump(make_data(changes)))
    assert study.architectures == ("cnn", "lenet5", "mlp")


@pytest.mark.parametrize("epochs", [0, 5])
@pytest.mark.parametrize("mode", ["weights", "logits"])
def test_a_discriminant_needs_no_silo_of_its_architecture(epochs: int, mode: str) -> None:
    settings = {**discriminant(), "epochs": epochs, "mode": mode}
    changes = {"arms/fedkd/arch": "patch-features", "arms/fedkd/consolidation": settings}
    study = parse_study(yaml.safe_dump(make_data(changes)))
    assert study.global_arch("fedkd") == "patch-features"


def test_a_rounds_rate_falls_along_a_cosine_if_it_is_to() -> None:
    changes = {"rounds": {"max": 4, "lr": 0.1}, "arms/fedkd/rounds": {"schedule": "cosine"}}
    study = parse_study(yaml.safe_dump(make_data(changes)))
    constant, falling = study.rounds_of("fedavg"), study.rounds_of("fedkd")
    assert [constant.in_round(number).lr for number in (1, 4)] == [0.1, 0.1]
    rates = [falling.in_round(number).lr for number in (1, 2, 3, 4)]
    assert rates == pytest.approx([0.1, 0.0853553, 0.05, 0.0146447], rel=1e-5)
    assert falling.in_round(2).model_copy(update={"lr": 0.1}) == falling


def test_a_rounds_rate_rises_while_it_warms_up() -> None:
    study = parse_study(yaml.safe_dump(make_data({"rounds": {"max": 6, "warmup": 0.5}})))
    rates = [study.rounds.in_round(number).lr for number in range(1, 7)]
    assert rates == pytest.approx([0.0125, 0.025, 0.0375, 0.05, 0.05, 0.05])


@pytest.mark.parametrize("train", ["all", "head", {"last": 1}, {"lora": {"rank": 2}}])
def test_default_rates_follow_the_part_that_is_trained(train: Any) -> None:
    changes = {
        "model": {"arch": "cnn", "weights": "/w.pt", "train": train},
        "arms/fedkd": {"start": "consolidated"},
        "arms/fedkd-own": {"start": "consolidated", "consolidation": {"lr": 0.3}},
        "arms/adam": {"start": "random", "rounds": {"optimizer": "adam"}},
    }
    study = parse_study(yaml.safe_dump(make_data(changes)))
    whole = {"pretraining": 0.02, "consolidation": PRETRAINED_STUDENT["lr"], **PRETRAINED_RATES}
    rates = whole if train == "all" else PART_RATES
    assert study.pretraining.lr == rates["pretraining"]
    assert [study.rounds_of(arm).lr for arm in ("fedavg", "adam")] == [rates["rounds"], 0.001]
    settings = [study.arms[arm].consolidation for arm in ("fedkd", "fedkd-own")]
    assert [each.lr for each in settings if each] == [rates["consolidation"], 0.3]
    adaptive = "adamw" if train == "all" else "sgd"
    assert [each.optimizer for each in settings if each] == [adaptive, "sgd"]
    assert parse_study(dump_study(study)) == study
    changes |= {"pretraining": {"lr": 0.4}, "rounds": {"optimizer": "adam"}}
    changes["arms/adam"] = {"start": "random", "rounds": {"optimizer": "sgd"}}
    fresh = {"student": "fresh"}
    changes["arms/fedkd"] = {"start": "consolidated", "arch": "mlp", "consolidation": fresh}
    own = parse_study(yaml.safe_dump(make_data(changes)))
    assert own.pretraining.lr == 0.4
    (other,) = [arm.consolidation for name, arm in own.arms.items() if name == "fedkd"]
    assert other is not None
    assert (other.optimizer, other.lr) == ("sgd", 0.05 if train == "all" else 0.02)
    assert [own.rounds_of(arm).lr for arm in ("fedavg", "adam")] == [0.001, rates["rounds"]]


def test_defaults_follow_the_optimizer_of_section_and_arm() -> None:
    study = parse_study(
        yaml.safe_dump(
            make_data(
                {
                    "pretraining": {"optimizer": "adamw"},
                    "rounds": {"lr": 0.3, "weight_decay": 0.1},
                    "arms/fedkd/consolidation/optimizer": "adam",
                    "arms/fedkd/rounds": {"optimizer": "adamw"},
                    "arms/other": {"start": "random", "rounds": {"optimizer": "adam", "lr": 0.2}},
                }
            )
        )
    )
    settings = study.arms["fedkd"].consolidation
    assert settings is not None
    sections = [study.pretraining, settings, study.rounds]
    sections += [study.rounds_of(name) for name in ("fedkd", "other")]
    assert [(each.optimizer, each.lr, each.weight_decay) for each in sections] == [
        ("adamw", 0.001, 0.01),
        ("adam", 0.001, 0.0),
        ("sgd", 0.3, 0.1),
        ("adamw", 0.001, 0.01),
        ("adam", 0.2, 0.0),
    ]
    assert parse_study(dump_study(study)) == study
