"""Studies in and out: YAML text to a checked ``Study`` and back, without importing PyTorch."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedkd.config import Consolidation, Study
from fedkd.config.backbone import is_weights_file
from fedkd.config.data import Given
from fedkd.config.overrides import parse_override, replace_value
from fedkd.config.own import find_problems
from fedkd.config.paths import absolute_arm, absolute_model, absolute_path, absolute_source
from fedkd.config.rows import read_rows
from fedkd.config.table import Table
from fedkd.errors import UserError
from fedkd.registry import SOURCES, is_table, read_silo_names
from fedkd.util.checkpoint_files import find_weights_problem
from fedkd.util.error_messages import Problem, join_problems, show, to_user_error
from fedkd.util.yaml_loader import dump_yaml, load_yaml, read_text


def load_study(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    seeds: Sequence[int] | None = None,
    engine: str | None = None,
) -> Study:
    """Return the study of a YAML file, its relative paths made absolute.

    Args:
        path: the study file.
        overrides: ``path=value`` each, such as ``"rounds.max=10"`` or ``"targets.0=0.8"``; the
            value is YAML. Later ones win. Paths of files in them are relative to the study
            file's folder too.
        seeds: used instead of the file's.
        engine: the engine's name, used instead of the file's.

    Raises:
        UserError: if the file cannot be read or is no valid study; one line a problem.
    """
    origin = str(path)
    data = _load_mapping(read_text(path, "study"), origin=origin)
    for override in overrides:
        keys, value = parse_override(override)
        data = replace_value(data, keys, value, origin=f"--set {override}")
    if seeds is not None:
        data = {**data, "seeds": list(seeds)}
    if engine is not None:
        data = replace_value(data, ["engine", "name"], engine, origin=origin)
    folder = path.absolute().parent
    study = _validate(_with_silos(data, folder, origin), origin=origin)
    return _make_paths_absolute(study, folder)


def parse_study(text: str, *, origin: str = "study") -> Study:
    """Return the study that YAML or JSON text holds; its paths stay as they are.

    Errors begin with ``origin``.

    Raises:
        UserError: if it is no valid study; one line a problem.
    """
    return _validate(_load_mapping(text, origin=origin), origin=origin)


def resolve_study(data: Mapping[str, Any], *, origin: str = "study") -> Study:
    """Return the study that a mapping holds, its paths taken from the working folder.

    Errors begin with ``origin``.

    Raises:
        UserError: if it is no valid study; one line a problem.
    """
    study = _validate(_with_silos(dict(data), Path.cwd(), origin), origin=origin)
    return _make_paths_absolute(study, Path.cwd())


def parse_consolidation(values: Mapping[str, Any], overrides: Sequence[str] = ()) -> Consolidation:
    """Return the settings of a consolidation outside any study, by their keys in its section.

    Overrides are ``key=value`` each, such as ``"temperature=4"``; later ones win.

    Raises:
        UserError: if they are no valid settings; one line a problem.
    """
    data = dict(values)
    for override in overrides:
        keys, value = parse_override(override, example="temperature=4")
        data = replace_value(data, keys, value, origin=f"--set {override}")
    try:
        return Consolidation.model_validate(data)
    except ValidationError as error:
        raise to_user_error(error, data, origin="consolidation") from None


def dump_study(study: Study) -> str:
    """Return the resolved study as YAML text; parsing it gives an equal study."""
    return dump_yaml(study.to_dict())


def study_schema() -> dict[str, Any]:
    """Return the JSON schema of study files, for editors that complete and check YAML."""
    schema = Study.model_json_schema()
    # The scheme has a default for a study without a partition, but a partition must name its own.
    schema["$defs"]["Iid"]["required"] = ["scheme"]
    dialect = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": dialect, **schema, "title": "fedkd study"}


def check_files(study: Study) -> None:
    """Refuse a study whose files are missing or whose own functions cannot be used.

    Functions of the user's own are imported.

    Raises:
        UserError: one line a problem, each beginning with the key's path.
    """
    problems = find_problems(study)
    # Files of deployed silos are on other hosts, which check them.
    if not study.is_deployed:
        problems += _find_file_problems(study)
    if problems:
        raise join_problems(problems)


def _find_file_problems(study: Study) -> list[Problem]:
    problems = []
    for silo, checkpoint in study.pretraining.checkpoints.items():
        if sentence := find_weights_problem(Path(checkpoint)):
            problems.append(Problem(f"pretraining.checkpoints.{silo}", sentence))
    weights = study.model.weights
    if weights and is_weights_file(weights) and (sentence := _find_path_problem(weights, "file")):
        problems.append(Problem("model.weights", sentence))
    for index, name in enumerate(study.model.files):
        if sentence := _find_path_problem(name, "file"):
            problems.append(Problem(f"model.files.{index}", sentence))
    sources = {"data.source": study.data.source, "data.transfer.source": study.data.transfer.source}
    if isinstance(study.partition, Given):
        sources |= {f"partition.silos.{silo}": s for silo, s in study.partition.silos.items()}
    for key, source in sources.items():
        prefix, name = SOURCES.split(source or "")
        if prefix and prefix.path and (sentence := _find_path_problem(name, prefix.path)):
            problems.append(Problem(key, sentence))
    return problems


def _find_path_problem(name: str, expected: str) -> str | None:
    try:
        mode = os.stat(name).st_mode  # noqa: PTH116 - Path drops what makes a name invalid
    except FileNotFoundError:
        return f"there is no {expected} {name}"
    except (OSError, ValueError) as error:
        return f"{name} cannot be read: {getattr(error, 'strerror', None) or error}"
    fits = stat.S_ISDIR(mode) if expected == "folder" else stat.S_ISREG(mode)
    return None if fits else f"{name} is not a {expected}"


def _load_mapping(text: str, *, origin: str) -> dict[str, Any]:
    data = load_yaml(text, origin=origin)
    if data is None:
        raise UserError(f"{origin}: is empty; a study needs at least name, targets and arms")
    if not isinstance(data, dict):
        what = "a list" if isinstance(data, list) else f"only the value {show(data)}"
        raise UserError(f"{origin}: holds {what}, but a study is a mapping of keys to values")
    return data


def _validate(data: dict[str, Any], *, origin: str) -> Study:
    try:
        return Study.model_validate(data)
    except ValidationError as error:
        raise to_user_error(error, data, origin=origin) from None


def _with_silos(data: dict[str, Any], folder: Path, origin: str) -> dict[str, Any]:
    """Return a study with its silos' names, where a file or a column of the data has them."""
    partition, section = data.get("partition"), data.get("data")
    if not isinstance(partition, dict) or partition.get("scheme") != "by-column":
        return _with_rows(data, folder, origin)
    if not isinstance(section, dict):
        return data
    source, columns = section.get("source"), section.get("table")
    if not isinstance(source, str) or not is_table(source) or partition.get("names"):
        return data
    try:
        table = None if columns is None else Table.model_validate(columns)
        names = read_silo_names(str(absolute_source(source, folder)), table)
    except ValidationError:
        return data  # the whole study's validation says what is wrong
    except UserError as error:
        raise UserError(f"{origin}: {error}") from None
    return {**data, "partition": {**partition, "names": names}}


def _with_rows(data: dict[str, Any], folder: Path, origin: str) -> dict[str, Any]:
    """Return a study whose file of rows is seen from ``folder``; it has the silos' names."""
    partition = data.get("partition")
    if not isinstance(partition, dict) or partition.get("scheme") != "indices":
        return data
    name = partition.get("path")
    if not isinstance(name, str) or not name:
        return data
    path = absolute_path(name, folder)
    try:
        names = partition.get("names") or list(read_rows(path))
    except UserError as error:
        raise UserError(f"{origin}: partition: path: {error}") from None
    return {**data, "partition": {**partition, "path": path, "names": names}}


def _make_paths_absolute(study: Study, folder: Path) -> Study:
    """Return the study with its relative paths resolved against ``folder``.

    Symbolic links are kept: what a link points to may have another ending.
    """
    data, pretraining = study.data, study.pretraining
    transfer = data.transfer.model_copy(
        update={"source": absolute_source(data.transfer.source, folder)}
    )
    text = data.text
    if text is not None and text.tokenizer is not None:
        text = text.model_copy(update={"tokenizer": absolute_path(text.tokenizer, folder)})
    source = absolute_source(data.source, folder)
    data = data.model_copy(update={"source": source, "transfer": transfer, "text": text})
    checkpoints = {
        silo: absolute_path(name, folder) for silo, name in pretraining.checkpoints.items()
    }
    pretraining = pretraining.model_copy(update={"checkpoints": checkpoints})
    arms = {name: absolute_arm(arm, folder) for name, arm in study.arms.items()}
    changed: dict[str, object] = {
        "data": data,
        "pretraining": pretraining,
        "model": absolute_model(study.model, folder),
        "arms": arms,
    }
    if isinstance(study.partition, Given):
        silos = {
            silo: absolute_source(source, folder) for silo, source in study.partition.silos.items()
        }
        changed["partition"] = study.partition.model_copy(update={"silos": silos})
    return study.model_copy(update=changed)
