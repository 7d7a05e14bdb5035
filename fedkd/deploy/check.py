"""The look before a silo starts: everything that would fail in the middle of a run, found now."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import torch

from fedkd.config import Study
from fedkd.config.own import names_at_silo
from fedkd.data.images import content_hash
from fedkd.deploy.approvals import approve, draw_seen, is_approved
from fedkd.deploy.audit import check_log
from fedkd.deploy.holdings import Holdings, read_holdings, read_own_model, study_at_silo
from fedkd.deploy.silo_file import SiloFile
from fedkd.deploy.worker_folder import WorkerFolder
from fedkd.errors import FedKDError
from fedkd.federation.deployed_data import draw_transfer
from fedkd.models.backbone import Backbone
from fedkd.models.build import rebuild
from fedkd.models.preprocessing import from_config
from fedkd.registry import is_table, is_text
from fedkd.training.compute import Compute, find_device
from fedkd.training.evaluate import evaluate
from fedkd.util.finding import Finding
from fedkd.util.parallel import available_cores
from fedkd.util.places import nearest

LITTLE_DISK = 1 << 30


class SiloCheck:
    """Looks at what a silo's file names, in the study's terms if there is a study.

    With ``accept`` its owner approves the study's transfer sets. Without ``path``, that of its
    ``silo.yaml``, its worker process is left out.
    """

    def __init__(
        self, file: SiloFile, study: Study | None, *, accept: bool = False, path: Path | None = None
    ) -> None:
        self._path = path
        self._file = file
        self._accept = accept
        self._study = None if study is None else study_at_silo(file, study)
        self._held: Holdings | None = None

    def findings(self) -> Iterator[Finding]:
        """Yield what every check finds; one that fails hides no other."""
        checks: dict[str, Callable[[], Finding]] = {
            "study": self._check_study,
            "data": self._check_data,
            "labels": self._check_labels,
            "model": self._check_model,
            "code": self._check_code,
            "transfer": self._check_transfer,
            "approval": self._check_approval,
            "sharing": self._check_sharing,
            "device": self._check_device,
            "audit log": self._check_audit,
            "disk": self._check_disk,
            "worker": self._check_worker,
        }
        for name, check in checks.items():
            if self._needs_study and name in ("data", "labels", "model"):
                yield Finding(name, "note", "read as a study says", "give --study to check it")
                continue
            try:
                yield check()
            except FedKDError as error:
                yield Finding(name, "broken", str(error), "mend this in silo.yaml or its files")
            except Exception as error:
                yield Finding(name, "broken", f"{type(error).__name__}: {error}")

    @property
    def _needs_study(self) -> bool:
        """Whether a study must say what columns are, and there is none."""
        is_given = self._study is not None and self._study.is_deployed
        return not is_given and (is_table(self._file.data) or is_text(self._file.data))

    def _check_study(self) -> Finding:
        study = self._study
        if study is None:
            return Finding("study", "note", "none given", "give --study to check against it")
        if not study.is_deployed:
            return Finding(
                "study",
                "broken",
                f"{study.name} shares out one data set among simulated silos",
                "ask for a study whose partition.scheme is deployed",
            )
        if self._file.name not in study.silo_names:
            names = ", ".join(study.silo_names)
            return Finding(
                "study",
                "broken",
                f"{study.name} has no silo {self._file.name!r}; it has {names}",
                "set name, or have it added to partition.names",
            )
        return Finding("study", "ok", f"{study.name} has a silo {self._file.name}")

    def _check_data(self) -> Finding:
        held = self._holdings()
        count, least = len(held.train), self._file.share.min_samples
        value = f"{count} {held.shape}"
        if held.test is not None:
            value += f", and {len(held.test)} to test on"
        if self._study and self._study.is_deployed:
            least = max(least, self._study.partition.min_size)
        if count < least:
            return Finding("data", "broken", f"{value}; {least} are the least that take part")
        if held.warnings:
            return Finding("data", "note", value, "; ".join(held.warnings))
        if held.test is None:
            advice = (
                "one, or the study's data.silo_test, measures on examples that no round trains on"
            )
            return Finding("data", "note", f"{value}, none to test on", advice)
        return Finding("data", "ok", value)

    def _check_labels(self) -> Finding:
        held = self._holdings()
        counts = torch.bincount(held.train.labels, minlength=len(held.classes)).tolist()
        told = [f"{name} {n}" for name, n in zip(held.classes, counts, strict=True) if n]
        value = f"{len(told)} of {len(held.classes)} classes: {', '.join(told[:12])}"
        return Finding("labels", "ok", value + (", ..." if len(told) > 12 else ""))

    def _check_model(self) -> Finding:
        if self._file.checkpoint is None:
            backbone, value = self._backbone(), "none: the silo takes part in rounds alone"
            if backbone is not None and backbone.is_pretrained:
                value += f"; the study's weights are here ({backbone.weights_hash[:12]})"
            return Finding("model", "note", value)
        held = self._holdings()
        if held.columns:
            return Finding("model", "note", "read in a run, once the columns' sums are known")
        shape = replace(held.shape, backbone=self._backbone())
        arch, checkpoint = read_own_model(self._file, shape, held.classes)
        judged = held.train if held.test is None else held.test
        found = evaluate(rebuild(arch, shape, checkpoint.state), judged, compute=Compute())
        which = "its examples" if held.test is None else "its test examples"
        value = f"{arch}, finite, right on {found.accuracy:.1%} of {which}"
        value += "".join(f"; {note}" for note in checkpoint.notes)
        study = self._study
        if study and study.is_deployed and self._file.name in study.silo_names:
            expected = study.arch_of(self._file.name)
            if expected != arch:
                advice = f"have model.per_silo of the study say {self._file.name}: {arch}"
                return Finding("model", "broken", f"{value}; the study says {expected}", advice)
        if found.accuracy <= 1 / held.shape.num_classes:
            advice = "are the labels mapped as they were when it was trained?"
            return Finding("model", "note", f"{value}, no better than guessing", advice)
        return Finding("model", "ok", value)

    def _backbone(self) -> Backbone | None:
        """Return what the study says of its models; without a study, what the silo's file says."""
        if self._study and self._study.is_deployed:
            return Backbone.of(self._study, weights=self._file.weights)
        own = self._file.model
        preprocessing = from_config(own.preprocessing) if own else None
        if own is None or own.arch is None or preprocessing is None:
            return None
        return Backbone(own.arch, preprocessing=preprocessing)

    def _check_transfer(self) -> Finding:
        study, source = self._study, self._file.transfer
        if source is None:
            return Finding("transfer", "ok", "not here: sent by the server where it is needed")
        if study is None or not study.is_deployed:
            return Finding("transfer", "note", source, "give --study to check against it")
        drawn = draw_transfer(study, study.seeds[0], source)
        if drawn is None:
            return Finding("transfer", "note", f"{source}: the study draws from no such source")
        value = f"{source}: {len(drawn)} examples; the server compares their hash with its own"
        return Finding("transfer", "ok", value)

    def _check_code(self) -> Finding:
        named = names_at_silo(self._study, self._file.name) if self._study else []
        refused = {name: key for key, _, name in named if name not in self._file.importable}
        if refused:
            listed = "; ".join(f"{key}: {name}" for name, key in refused.items())
            advice = "read this code, and name what you trust under allow in silo.yaml"
            return Finding("code", "broken", f"the study would have it import {listed}", advice)
        return Finding("code", "ok", f"{len(named)} functions that are not fedkd's, all allowed")

    def _check_approval(self) -> Finding:
        study, share = self._study, self._file.share
        if not (share.densities or share.moments or share.teacher == "logits"):
            value = "not needed: it shares no densities, moments or mere predictions"
            return Finding("approval", "ok", value)
        if study is None or not study.is_deployed:
            return Finding("approval", "note", "give --study to see its transfer sets")
        drawn = draw_seen(self._file, study)
        hashes = [content_hash(images) for images in drawn]
        if self._accept:
            approve(self._file, hashes)
        missing = [
            told
            for told, images, seed in zip(hashes, drawn, study.seeds, strict=False)
            if not is_approved(images, self._file, study, seed)
        ]
        if missing or not hashes:
            value = f"not approved: {', '.join(missing)}" if missing else "no transfer set is here"
            advice = "look at its examples; then --accept, or add the hash to approve.transfer"
            return Finding("approval", "note", value, advice)
        return Finding("approval", "ok", f"transfer sets {', '.join(hashes)}")

    def _check_sharing(self) -> Finding:
        share = self._file.share
        switches = ("rounds", "metrics", "densities", "moments", "class_counts")
        told = [f"{key}: {'yes' if getattr(share, key) else 'no'}" for key in switches]
        value = ", ".join([f"teacher: {share.teacher}", *told])
        if self._study and (missing := missing_shares(self._file, self._study)):
            advice = "the silo will refuse these, and be left out where they are asked for"
            return Finding("sharing", "note", f"{value}; {'; '.join(missing)}", advice)
        return Finding("sharing", "ok", value)

    def _check_device(self) -> Finding:
        device = find_device(self._file.device)
        Compute(device).check()
        threads = self._file.threads or available_cores()
        return Finding("device", "ok", f"{device}, {threads} threads for training")

    def _check_audit(self) -> Finding:
        check_log(Path(self._file.audit))
        return Finding("audit log", "ok", self._file.audit)

    def _check_disk(self) -> Finding:
        place = nearest(Path(self._file.audit).parent)
        free = shutil.disk_usage(place).free
        value = f"{free / (1 << 30):.1f} GiB free at {place}"
        if free < LITTLE_DISK:
            return Finding("disk", "note", value, "make room for the log and Flower's files")
        return Finding("disk", "ok", value)

    def _check_worker(self) -> Finding:
        """Report the process that answers the silo's messages, and its memory."""
        running = None if self._path is None else WorkerFolder.of(self._path).worker()
        if running is None:
            return Finding("worker", "ok", "does not run; the next message starts it")
        process, _ = running
        try:
            memory = process.memory_info().rss / (1 << 20)
        except psutil.Error:  # it ended meanwhile, or is another user's
            return Finding("worker", "ok", f"process {process.pid}")
        value = f"process {process.pid} with {memory:.0f} MiB of memory"
        return Finding("worker", "ok", f"{value}; ends after {self._file.idle} s without a message")

    def _holdings(self) -> Holdings:
        """Read the examples once, in the study's terms where there is one to go by."""
        if self._held is None:
            study = self._study
            data = study.data if study and study.is_deployed else None
            self._held = read_holdings(
                self._file,
                classes=data.classes if data else None,
                channels=data.channels if data else None,
                image_size=data.image_size if data else None,
                columns=study.columns if study and data else None,
            )
        return self._held


def missing_shares(file: SiloFile, study: Study) -> list[str]:
    """Return what arms of the study ask for that the silo does not share."""
    share, missing = file.share, []
    for name, arm in study.arms.items():
        settings = arm.consolidation
        mode = settings.mode if settings else "weights"
        if arm.starts_from_models and share.teacher not in ("weights", mode):
            missing.append(f"arms.{name} asks for the {mode} of its model")
        if settings and settings.uses_densities:
            asked = "moments" if settings.uses_moments else "densities"
            if not getattr(share, asked):
                missing.append(f"arms.{name} asks for {asked}")
            own = settings.familiarity
            if own.density == "knn" or own.basis == "features":
                kind = "densities in features" if own.basis == "features" else "knn densities"
                missing.append(f"arms.{name} asks for {kind}, which no deployed silo shares")
    if study.is_table and not share.table_sums:
        missing.append("all arms ask for sums of its table's columns")
    if not share.rounds:
        missing.append("all arms ask for rounds")
    return missing
