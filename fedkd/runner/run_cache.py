"""Finished runs in the cache, keyed by everything that determines them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from fedkd.config.own import function_keys
from fedkd.engines.base import Task
from fedkd.errors import FedKDError
from fedkd.models.build import arch_fingerprint
from fedkd.models.given import find_given
from fedkd.results.record import RunRecord, write_state
from fedkd.runner.results_folder import scratch_folder
from fedkd.util.cache import cache_key
from fedkd.util.cache_entries import MANIFEST, find_damage, has_entry, new_entry
from fedkd.util.lock import LOCK_FILE


def cached_run(task: Task) -> Path:
    """Return the cache entry of this run, if the cache can hold one."""
    study = task.federation.study
    checkpoint, what = study.arms[task.arm].checkpoint, f"arms.{task.arm}.checkpoint"
    key = cache_key(
        {
            "kind": "arm",
            "federation": _federation(task),
            "transfer": study.data.transfer.model_dump(),
            "name": task.arm,
            "arm": study.arms[task.arm].model_dump(exclude={"rounds", "tuned"}),
            "arch": arch_fingerprint(
                study.global_arch(task.arm), study.model.files, task.federation.shape.backbone
            ),
            "own": function_keys(study, task.arm),
            "checkpoint": None if checkpoint is None else find_given(checkpoint, what=what).key(),
            "rounds": study.rounds_of(task.arm).model_dump(),
            "engine": study.engine.model_dump(exclude={"workers"}),
            "targets": task.targets,
            "metric": study.metric,
        }
    )
    return task.federation.cache / "arms" / key


def take(task: Task) -> RunRecord | None:
    """Copy the run into its folder, if the cache holds a complete one."""
    cached = cached_run(task)
    if task.folder.exists() or not has_entry(cached):
        return None
    with scratch_folder(task.folder) as scratch:
        try:
            # Copied first: another process may remove the entry at any time.
            shutil.copytree(cached, scratch, dirs_exist_ok=True)
            if find_damage(scratch):
                return None
            (scratch / MANIFEST).unlink()
            record = replace(RunRecord.read(scratch), cached=True)
        except (FedKDError, OSError):
            return None
        write_state(scratch, record)
        scratch.rename(task.folder)
    return record


def store(task: Task) -> None:
    """Store a finished run in the cache, replacing an earlier entry."""
    with new_entry(cached_run(task)) as entry:
        ignored = shutil.ignore_patterns(f"{LOCK_FILE}*")
        shutil.copytree(task.folder, entry, ignore=ignored, dirs_exist_ok=True)


def _federation(task: Task) -> dict[str, object]:
    """Identify the data and models that the run uses; a random start uses no silo's model."""
    known = task.federation.fingerprint()
    if task.federation.study.arms[task.arm].needs_pretrained:
        return known
    return {key: part for key, part in known.items() if key not in ("pretraining", "checkpoints")}
