"""``fedkd evaluate``: given models on every silo and the server, in simulation or on hosts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from clients.silo import Silo
from fedkd.config import Study
from fedkd.config.study_file import check_files
from fedkd.engines import check_engine
from fedkd.errors import UserError
from fedkd.federation.federation import Federation
from fedkd.federation.thread_pool import silo_pool
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

    Args:
        study: names the silos and the data.
        models: checkpoints, or folders ``RUN/ARM/seed-N``. Those of deployed silos are on the
            SuperLink's host.
        seed: of the study, by which data are split among simulated silos; by default its first.
        report: told which deployed silos are waited for.

    Raises:
        UserError: a model or the study does not fit.
        FedKDError: too few deployed silos answered.
    """
    seed = study.seeds[0] if seed is None else seed
    named = _name(models)
    check_files(study)
    check_engine(study)
    if study.is_deployed:
        from fedkd.engines.evaluation import evaluate_on_hosts

        return evaluate_on_hosts(study, seed, named, report)
    check_cache_root()
    federation = Federation.load(study, seed, cache_root())
    federation.compute.check()
    archs = [study.model.arch, *study.architectures]
    classes, shape = federation.split.classes, federation.shape.merged
    read = {
        name: read_given(find_given(path, what=name), archs, shape, classes, what=name)
        for name, path in named.items()
    }
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
    """Return the models by names that tell them apart: as much of the end of a path as it takes.

    Raises:
        UserError: a model is given twice.
    """
    paths = [path.absolute() for path in models]
    if len(set(paths)) < len(paths):
        raise UserError("MODEL: one of the models is given twice")
    least = {path: 2 if path.is_dir() else 1 for path in paths}
    for extra in range(max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-least[path] - extra :]) for path in paths]
        if len(set(names)) == len(names):
            break
    return dict(sorted(zip(names, models, strict=True), key=lambda item: natural_key(item[0])))
