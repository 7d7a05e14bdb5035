"""The requirements of fedkd and its extras, from the installed package's metadata."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement


def requirements(extra: str = "") -> Iterator[Requirement]:
    """Yield fedkd's requirements here, or those that ``extra`` adds, without their markers."""
    from packaging.requirements import Requirement

    for line in importlib.metadata.requires("fedkd") or []:
        requirement = Requirement(line)
        marker, requirement.marker = requirement.marker, None
        fits = [marker is None or marker.evaluate({"extra": name}) for name in ("", extra)]
        if fits == [not extra, True]:
            yield requirement


def install_command(*extras: str) -> str:
    """Return the pip command that installs what ``extras`` add.

    It names their packages: no index needs to have fedkd itself.
    """
    try:
        found = [f"'{requirement}'" for extra in extras for requirement in requirements(extra)]
    except importlib.metadata.PackageNotFoundError:  # run from its sources, not installed
        return f"pip install '.[{','.join(extras)}]' in the repository of fedkd"
    return f"pip install {' '.join(found)}"
