"""A SuperLink and SuperNodes on this machine alone, with TLS and a key for each silo.

It is what ``docs/deploy.md`` sets up on several hosts, with the same programs and options. All of
it is in one temporary folder, and ends with this process, however that ends.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path

import tomli_w

from fedkd.deploy.keys import (
    CA_CERTIFICATE,
    SERVER_CERTIFICATE,
    SERVER_KEY,
    make_server_keys,
    make_silo_key,
)
from fedkd.engines.app_folder import AppFolder
from fedkd.engines.flower_app import find_program, last_lines
from fedkd.engines.processes import free_port
from fedkd.engines.superlink import Connection, SuperLink
from fedkd.errors import FedKDError
from fedkd.util.heap import PART_BYTES, THRESHOLD

CONNECTION = "loopback"
"""Name of the SuperLink in the temporary ``config.toml`` of Flower."""
DATABASE = "superlink.db"
HOST = "127.0.0.1"
PATIENCE_SECONDS = 180.0
POLL_SECONDS = 0.2


class Loopback:
    """Runs the programs between ``with`` and its end.

    Attributes:
        folder: temporary; for whatever should be removed with it.
    """

    def __init__(
        self, silos: Mapping[str, Path], report: Callable[[str], None] = lambda _: None
    ) -> None:
        self._silos = silos
        self._report = report
        self._home: str | None = None

    def __enter__(self) -> Loopback:
        """Start the SuperLink and the SuperNodes, and wait until all are connected.

        Raises:
            FedKDError: a program ended, or is not ready in time.
        """
        self._place = AppFolder()
        self.folder = self._place.folder
        self._home = os.environ.get("FLWR_HOME")
        os.environ["FLWR_HOME"] = str(self.folder / "flwr")
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        """End everything and remove the folder."""
        if self._home is None:
            os.environ.pop("FLWR_HOME", None)
        else:
            os.environ["FLWR_HOME"] = self._home
        self._place.close()

    def _start(self) -> None:
        keys, temporary = self.folder / "keys", self.folder / "tmp"
        temporary.mkdir()
        make_server_keys(keys, [HOST])
        self._address = f"{HOST}:{free_port()}"
        self._place.environment |= {
            "FLWR_HOME": os.environ["FLWR_HOME"],
            "FEDKD_STATE_DIR": str(self.folder / "state"),
            "TMPDIR": str(temporary),
            THRESHOLD: PART_BYTES,
        }
        self._write_connection(keys)
        self._report("starting the SuperLink, with TLS")
        superlink = SuperLink(Connection(CONNECTION, self._address), self._place)
        log = self.folder / "superlink.log"
        make_database(self.folder / DATABASE)
        process = self._place.start(self._superlink_command(keys), log)
        self._wait(lambda: superlink.count_online() is not None, {process: log})
        started = {process: log}
        for name, path in self._silos.items():
            private, public = make_silo_key(keys, name)
            # Flower's command gives up early on a busy machine.
            self._wait(partial(_is_registered, superlink, public, name), {process: log})
            own_log = self.folder / f"{name}.log"
            node = self._place.start(self._supernode_command(keys, private, path), own_log)
            started[node] = own_log
        self._report(f"starting {len(self._silos)} SuperNodes, each with its key")
        self._wait(lambda: superlink.count_online() == len(self._silos), started)

    def _write_connection(self, keys: Path) -> None:
        home = Path(os.environ["FLWR_HOME"])
        home.mkdir()
        certificate = str(keys / CA_CERTIFICATE)
        link = {"address": self._address, "root-certificates": certificate}
        (home / "config.toml").write_text(tomli_w.dumps({"superlink": {CONNECTION: link}}))

    def _superlink_command(self, keys: Path) -> list[str | Path]:
        host, _, port = self._address.rpartition(":")
        return [
            *(find_program("flower-superlink"), "--host", host, "--port", port),
            *("--ssl-certfile", keys / SERVER_CERTIFICATE, "--ssl-keyfile", keys / SERVER_KEY),
            *("--ssl-ca-certfile", keys / CA_CERTIFICATE, "--enable-supernode-auth"),
            *("--database", self.folder / DATABASE),
            "--disable-runtime-dependency-installation",
        ]

    def _supernode_command(self, keys: Path, private: Path, silo_file: Path) -> list[str | Path]:
        return [
            *(find_program("flower-supernode"), "--superlink", self._address),
            *("--root-certificates", keys / CA_CERTIFICATE),
            *("--auth-supernode-private-key", private, "--port", str(free_port())),
            *("--node-config", f'silo="{silo_file}"'),
        ]

    def _wait(
        self, holds: Callable[[], bool], started: Mapping[subprocess.Popen[bytes], Path]
    ) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not holds():
            for process, log in started.items():
                if process.poll() is not None:
                    raise FedKDError(f"{log.stem} ended:\n{last_lines(log)}")
            if time.monotonic() > deadline:
                log = list(started.values())[-1]
                raise FedKDError(
                    f"Flower's programs are not ready after {PATIENCE_SECONDS:.0f} s; the end of "
                    f"{log.name}:\n{last_lines(log)}"
                )
            time.sleep(POLL_SECONDS)


def make_database(path: Path) -> None:
    """Make a SuperLink's database with large pages, in which a large model is deleted sooner.

    All else waits for that, and Flower gives up after five seconds.
    """
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA page_size = 65536")
        database.execute("PRAGMA journal_mode = WAL")


def _is_registered(superlink: SuperLink, public_key: Path, name: str) -> bool:
    return superlink.register(public_key, name) is None
