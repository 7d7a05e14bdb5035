"""``fedkd evaluate``: given models on every silo and the server, in simulation or on hosts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from clients.silo import Silo
from fedkd.config import Study
from fedkd.config.study_file import check_files
from fedkd.engines import check_engine
from fedkd.engines.connection import locate_on_host
from fedkd.engines.follower import follow_run
from fedkd.errors import FedKDError, UserError, one_line
from fedkd.federation.federation import Federation
from fedkd.federation.thread_pool import silo_pool
from fedkd.messages import keys
from fedkd.messages.run_log import Kind
from fedkd.messages.validate import printable
from fedkd.models.given import find_given, read_given
from fedkd.models.state import State
from fedkd.results.evaluation import Evaluation, Measured
from fedkd.training.evaluate import evaluate
from fedkd.util.cache import cache_root, check_cache_root
from fedkd.util.names import natural_key
from fedkd.util.parallel import run_all


def evaluate_models(
    study: Study,
    models: Sequence[Path],
    *,
    seed: int | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Measure models on the examples of every silo and the server's test examples; train nothing.

    Models are checkpoints, or folders ``RUN/ARM/seed-N``; those of deployed silos are on the
    SuperLink's host. The seed splits the data of simulated silos, by default the study's first.
    ``report`` is called with the deployed silos that are waited for.

    Raises:
        UserError: a model or the study does not fit.
        FedKDError: too few deployed silos answered.
    """
    seed = study.seeds[0] if seed is None else seed
    named = _name(models)
    check_files(study)
    check_engine(study)
    if study.is_deployed:
        return _evaluate_on_hosts(study, seed, named, report)
    check_cache_root()
    federation = Federation.load(study, seed, cache_root())
    federation.compute.check()
    archs = [study.model.arch, *study.architectures]
    classes, shape = federation.split.classes, federation.shape.merged
    encoder = federation.split.encoder
    read = {
        name: read_given(
            find_given(path, what=name), archs, shape, classes, what=name, encoder=encoder
        )
        for name, path in named.items()
    }
    for _, model in read.values():
        for note in model.notes:
            report(note)
    silos: list[str | None] = [*study.silo_names, None]
    works = [
        partial(_measure, federation, name, silo, arch, model.state)
        for name, (arch, model) in read.items()
        for silo in (silos if len(federation.split.test) else silos[:-1])
    ]
    with silo_pool(study) as pool:
        return Evaluation(tuple(run_all(pool, works)))


def _measure(
    federation: Federation, name: str, silo: str | None, arch: str, state: State
) -> Measured:
    """Measure a model on a silo, as the silo does in rounds, or on the server where it is None."""
    images = federation.split.test if silo is None else Silo.of(federation, silo).evaluation_data
    shape, device = federation.shape.merged, federation.compute.device
    with federation.model_pool.borrow(arch, shape, state, device) as model:
        metrics = evaluate(model, images, compute=federation.compute)
    loss = metrics.loss if math.isfinite(metrics.loss) else None
    return Measured(name, silo, metrics.accuracy, loss, metrics.macro_f1, len(images))


def _name(models: Sequence[Path]) -> dict[str, Path]:
    """Return the models by names that tell them apart: as much of the end of a path as it takes."""
    paths = [path.absolute() for path in models]
    if len(set(paths)) < len(paths):
        raise UserError("MODEL: one of the models is given twice")
    least = {path: 2 if path.is_dir() else 1 for path in paths}
    for extra in range(max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-least[path] - extra :]) for path in paths]
        if len(set(names)) == len(names):
            break
    return dict(sorted(zip(names, models, strict=True), key=lambda item: natural_key(item[0])))


def _evaluate_on_hosts(
    study: Study, seed: int, models: Mapping[str, Path], report: Callable[[str], None]
) -> Evaluation:
    """Let deployed silos and their server measure models.

    A model is a file on the SuperLink's host, or the folder of a run on a SuperLink in the
    results on this host.

    Raises:
        UserError: a model is not of that kind.
        FedKDError: the run failed.
    """
    asked = [{"name": name, **_locate(path)} for name, path in models.items()]
    # An arm that asks silos for nothing of their own.
    without = [name for name, arm in study.arms.items() if not arm.starts_from_models]
    texts: dict[str, str | int] = {
        keys.CONFIG_STUDY: json.dumps(study.to_dict()),
        keys.CONFIG_ARM: (without or list(study.arms))[0],
        keys.CONFIG_MODELS: json.dumps(asked),
        keys.CONFIG_SEED: seed,
    }

    def take(kind: Kind, value: Any) -> None:
        if kind == "waiting":
            report(f"waiting: {printable(value)}")

    found = follow_run(study.engine.name, texts, take, "evaluation")
    try:
        return Evaluation.parse(found, list(models), study.silo_names)
    except (ValueError, TypeError) as error:
        raise FedKDError(
            f"what the SuperLink's host sent is not valid: {one_line(error)}"
        ) from error


def _locate(path: Path) -> dict[str, Any]:
    """Return how the SuperLink's host finds a model."""
    if not path.is_dir():
        if not path.is_absolute():
            raise UserError(
                f"{path}: the server of deployed silos reads models on the SuperLink's host; give "
                "an absolute path there, or the folder RUN/ARM/seed-N of a run on it"
            )
        return {"path": str(path)}
    return locate_on_host(path)
