"""The working folder of engines that run Flower's programs: it holds the app, and is removed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import tomli_w

from fedkd.engines.flower_app import write_app
from fedkd.engines.processes import MARK, end_marked, start, start_cleaner


class AppFolder:
    """A temporary folder that holds the app and marks what is started from it.

    However this process ends, a second process ends everything that it started.

    Attributes:
        folder: temporary; removed by :meth:`close`.
        app: the Flower app folder.
        environment: environment of the started programs; an engine may add to it.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fedkd-"))
        self._cleaner = start_cleaner(self.folder)
        self._started: list[subprocess.Popen[bytes]] = []
        programs = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
        self.environment = {
            **os.environ,
            MARK: str(self.folder),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "NO_COLOR": "1",
            "PATH": os.pathsep.join(programs),
        }
        try:
            self.app = write_app(self.folder / "fedkd-app")
        except BaseException:
            self.close()
            raise

    def start(self, command: Sequence[str | Path], log: Path) -> subprocess.Popen[bytes]:
        """Start a program; :meth:`end_all` ends it."""
        process = start(command, self.environment, log)
        self._started.append(process)
        return process

    def write_config(self, name: str, values: Mapping[str, str | int]) -> Path:
        """Write a run config as a file; on the command line an apostrophe would truncate it."""
        path = self.folder / f"{name}.toml"
        path.write_text(tomli_w.dumps(dict(values)), encoding="utf-8")
        return path

    def end_all(self) -> None:
        """End all programs started here, and their descendants."""
        end_marked(self.folder, started=self._started)
        self._started.clear()

    def close(self) -> None:
        """End all programs and remove the folder."""
        self.end_all()
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._cleaner.stdin is not None:
            self._cleaner.stdin.close()
        self._cleaner.wait()
