"""Checks of this machine, with advice on what is missing.

Every check is independent: one that raises becomes a finding and hides no other.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from fedkd.data.download import data_directory
from fedkd.errors import UserError, one_line
from fedkd.registry import TORCHVISION_SETS
from fedkd.util.cache import cache_root, check_cache_root, processor
from fedkd.util.finding import Finding
from fedkd.util.places import home, nearest
from fedkd.util.requirements import install_command, requirements
from fedkd.version import VERSION

LITTLE_DISK = 2 << 30
MOST_FILES = 100_000
"""Number of files of the cache after which counting stops."""

OPTIONAL = ("tensorboard", "mlflow", "wandb")
DEBIAN_DATA = Path("/usr/share/datasets")
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "bf16")


def examine() -> Iterator[Finding]:
    """Yield the finding of every check, most basic first."""
    for name, check in CHECKS.items():
        try:
            yield check()
        except Exception as error:
            yield Finding(name, "note", f"could not be checked: {one_line(error)}")


def check_python() -> Finding:
    """The versions of Python and fedkd."""
    running = platform.python_version()
    details = {"python": running, "fedkd": VERSION, "executable": sys.executable}
    return Finding("python", "ok", f"{running}, fedkd {VERSION}", details=details)


def check_packages() -> Finding:
    """The packages that fedkd requires, by its metadata."""
    versions: dict[str, str | None] = {}
    wrong: list[str] = []
    for requirement in requirements():
        try:
            versions[requirement.name] = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            versions[requirement.name] = None
        version = versions[requirement.name]
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"'{requirement}'")
    shown = ("torch", "torchvision", "flwr", "ray")
    value = ", ".join(f"{name} {versions.get(name) or 'missing'}" for name in shown)
    advice = f"pip install {' '.join(wrong)}" if wrong else ""
    return Finding("packages", "broken" if wrong else "ok", value, advice, versions)


def check_optional() -> Finding:
    """Optional packages."""
    installed = {name: find_spec(name) is not None for name in OPTIONAL}
    present = ", ".join(name for name in OPTIONAL if installed[name]) or "none"
    missing = [name for name in OPTIONAL if not installed[name]]
    advice = f"to track runs there too: {install_command(*missing)}" if missing else ""
    return Finding("trackers", "note" if missing else "ok", present, advice, installed)


def check_processor() -> Finding:
    """Cores that this process may use, and the instructions that speed up training."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = _cpu_quota()
    flags = _cpu_flags()
    value = f"{processor()}, {allowed} of {os.cpu_count()} cores"
    if flags:
        value += f", {' '.join(flags)}"
    details = {"name": processor(), "cores": allowed, "quota": quota, "instructions": flags}
    advice = ""
    if quota is not None and quota < (allowed or 1):
        advice = (
            f"this container may use {quota:g} of them; set engine.workers to {int(quota) or 1}"
        )
    return Finding("processor", "note" if advice else "ok", value, advice, details)


def check_torch() -> Finding:
    """Devices that PyTorch finds, and whether they support bf16."""
    try:
        import torch
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        value = f"PyTorch cannot be imported: {reason}"
        return Finding("devices", "broken", value, "install torch again")
    count = torch.cuda.device_count()
    gpus = [torch.cuda.get_device_name(index) for index in range(count)]
    mps = torch.backends.mps.is_available()
    cpu_bf16 = bool({"avx512_bf16", "amx_bf16", "bf16"} & set(_cpu_flags()))
    gpu_bf16 = bool(gpus) and torch.cuda.is_bf16_supported()
    details = {"cuda": gpus, "mps": mps, "bf16": {"cpu": cpu_bf16, "cuda": gpu_bf16}}
    value = ", ".join(["cpu", *(f"cuda:{index} ({name})" for index, name in enumerate(gpus))])
    value += f"; bf16 in hardware: {'yes' if cpu_bf16 or gpu_bf16 else 'no'}"
    advice = ""
    if Path("/proc/driver/nvidia/version").exists() and not gpus:
        advice = (
            "there is an NVIDIA driver but this PyTorch finds no GPU; install its CUDA build, or "
            "a newer driver"
        )
    elif gpus:
        advice = "set engine.device: cuda to use the GPU"
    elif mps:
        advice = "set engine.device: mps to use Apple's GPU"
    return Finding("devices", "note" if advice else "ok", value, advice, details)


def check_memory() -> Finding:
    """Main memory."""
    import psutil

    memory = psutil.virtual_memory()
    value = f"{_size(memory.total)}, {_size(memory.available)} free"
    details = {"total": memory.total, "free": memory.available}
    return Finding("memory", "ok", value, details=details)


def check_cache() -> Finding:
    """The cache: its folder and size, and whether it can be written to."""
    try:
        root = cache_root()
        check_cache_root()
    except UserError as error:
        return Finding("cache", "broken", "cannot be used", str(error))
    total = files = 0
    for folder, _, names in os.walk(root):
        for name in names:
            files += 1
            total += _bytes_of(os.path.join(folder, name))  # noqa: PTH118 -- many files
        if files > MOST_FILES:
            break
    more = "more than " if files > MOST_FILES else ""
    details = {"path": str(root), "bytes": total, "files": files}
    return Finding("cache", "ok", f"{root}, {more}{_size(total)}", details=details)


def check_disk() -> Finding:
    """Free space for results in this folder, and for the cache."""
    places = {"here": Path.cwd(), "cache": nearest(cache_root())}
    free = {name: shutil.disk_usage(place).free for name, place in places.items()}
    value = f"{_size(free['here'])} free here, {_size(free['cache'])} free for the cache"
    is_little = min(free.values()) < LITTLE_DISK
    advice = "free some space, or set FEDKD_CACHE_DIR and --out to another disk"
    return Finding("disk", "note" if is_little else "ok", value, advice if is_little else "", free)


def check_data() -> Finding:
    """Public data sets that are on this machine."""
    here = data_directory()
    sources = ["digits"]
    for name, torchvision_name in TORCHVISION_SETS.items():
        folders = (here / name, here / torchvision_name / "raw", DEBIAN_DATA / name)
        if any(folder.is_dir() and any(folder.iterdir()) for folder in folders):
            sources.append(name)
    hub = Path(os.environ.get("HF_HOME") or home("HF_HOME") / ".cache" / "huggingface") / "datasets"
    sources += sorted(f"hf:{entry.name.replace('___', '/')}" for entry in hub.glob("*___*"))
    advice = ""
    if len(sources) == 1:
        where = "FEDKD_DATA_DIR names another folder"
        advice = f"others are downloaded to {here} when a study needs them; {where}"
    details = {"found": sources, "path": str(here)}
    return Finding("data sets", "ok", ", ".join(sources), advice, details)


def check_flower() -> Finding:
    """Connections in Flower's configuration."""
    path = Path(os.environ.get("FLWR_HOME") or home("FLWR_HOME") / ".flwr") / "config.toml"
    if not path.is_file():
        advice = "flwr run writes it; local studies need none"
        nothing = {"path": str(path), "connections": {}}
        return Finding("flower", "ok", f"no connections: there is no {path}", advice, nothing)
    links = tomllib.loads(path.read_text(encoding="utf-8")).get("superlink", {})
    connections = {
        name: str(entry.get("address", ""))
        for name, entry in links.items()
        if isinstance(entry, dict)
    }
    default = links.get("default")
    shown = ", ".join(
        f"{name} ({address}{', default' if name == default else ''})"
        for name, address in connections.items()
    )
    details = {"path": str(path), "connections": connections, "default": default}
    return Finding("flower", "ok", shown or f"no connections in {path}", details=details)


def check_cluster() -> Finding:
    """Nodes of the Ray cluster that ``--engine ray`` joins."""
    address = os.environ.get("RAY_ADDRESS")
    if address is None:
        return Finding("cluster", "ok", "none: RAY_ADDRESS is not set, silos run on this machine")
    try:  # in a process of its own: without a cluster, Ray waits long and may end the process
        command = [sys.executable, "-c", _ASK_CLUSTER, address]
        answer = subprocess.check_output(command, stderr=subprocess.DEVNULL, timeout=60)  # noqa: S603
        nodes = json.loads(answer.splitlines()[-1])
    except (subprocess.SubprocessError, OSError, ValueError, IndexError):
        advice = "start it with ray start --head, or unset RAY_ADDRESS"
        return Finding("cluster", "broken", f"no cluster answers at {address}", advice)
    value = ", ".join(f"{name} ({cores:g} cores, {gpus:g} GPUs)" for name, cores, gpus in nodes)
    return Finding("cluster", "ok", f"{address}: {value}", details={"nodes": nodes})


_ASK_CLUSTER = """
import json, sys
import ray
ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
alive = [(n["NodeManagerHostname"], n["Resources"]) for n in ray.nodes() if n["Alive"]]
print(json.dumps([(name, has.get("CPU", 0), has.get("GPU", 0)) for name, has in alive]))
"""

CHECKS: dict[str, Callable[[], Finding]] = {
    "python": check_python,
    "packages": check_packages,
    "trackers": check_optional,
    "processor": check_processor,
    "devices": check_torch,
    "memory": check_memory,
    "disk": check_disk,
    "cache": check_cache,
    "data sets": check_data,
    "flower": check_flower,
    "cluster": check_cluster,
}


def _cpu_flags() -> list[str]:
    """Instructions of the processor that speed up training; none without ``/proc``."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    words = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return [name for name in INSTRUCTIONS if name in words.partition(":")[2].split()]


def _cpu_quota() -> float | None:
    """Return the number of processors that a container's limit allows; None without a limit."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return None
    return None if limit == "max" else int(limit) / int(period)


def _bytes_of(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 -- many files
    except OSError:
        return 0


def _size(count: float) -> str:
    units = ["TiB", "GiB", "MiB", "KiB", "bytes"]
    while count >= 1024 and len(units) > 1:
        count /= 1024
        units.pop()
    return f"{count:.{0 if count >= 100 or units[-1] == 'bytes' else 1}f} {units[-1]}"
