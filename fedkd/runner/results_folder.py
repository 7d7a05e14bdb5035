"""Results folders that appear complete or not at all."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from fedkd.config import Study
from fedkd.config.study_file import dump_study
from fedkd.errors import FedKDError
from fedkd.results.folder import STUDY_FILE
from fedkd.runner import resume as resumption
from fedkd.util.files import temporary_beside, write_text


def make_results_folder(out: Path, study: Study, *, fresh: bool) -> Path:
    """Make ``<out>/<study>/<timestamp>`` with the resolved study in it, in one step.

    Any folder with such a name can be resumed, whenever its process was killed.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    place = out / study.name
    try:
        with scratch_folder(place / stamp) as scratch:
            write_text(scratch / STUDY_FILE, dump_study(study))
            resumption.write_beginning(scratch, fresh=fresh)
            for attempt in range(1000):
                folder = place / (f"{stamp}-{attempt}" if attempt else stamp)
                if folder.exists():
                    continue
                try:
                    scratch.rename(folder)
                except OSError as error:  # another process made it first
                    if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                        raise
                    continue
                return folder
    except OSError as error:
        raise FedKDError(
            f"{place} cannot be written to: {error.strerror}; choose another place by --out"
        ) from error
    raise FedKDError(f"{place} already has too many results folders of this second")


@contextmanager
def scratch_folder(beside: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``place``; what remains of it is removed at the end."""
    with temporary_beside(beside) as folder:
        folder.mkdir()
        yield folder
