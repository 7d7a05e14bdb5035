"""The ``flwr-clientapp`` of ``fedkd silo serve``: it checks a bundle before any of it is imported.

A SuperNode starts this program, of the fedkd that is installed on the silo's host, for every
message. It is Flower's own program with one step more: the bundle's code must have the hash that
``code`` in ``silo.yaml`` pins. Names of Flower's that are not public are used here alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message
from flwr.common.config import get_project_dir
from flwr.supernode.cli import flwr_clientapp
from flwr.supernode.runtime import run_clientapp

from clients.audit_entry import describe_reply, describe_run
from fedkd.deploy.audit import append_entry
from fedkd.deploy.bundle_hash import PACKAGES, find_code_problem
from fedkd.deploy.silo_file import load_silo_file
from fedkd.errors import NotAllowedError, UserError
from fedkd.messages.failures import FAILED

STEPS = ("pull_task_input", "get_load_client_app_fn")


class _Pin:
    """Wraps the two steps of Flower's program between which the check belongs."""

    def __init__(self, silo_file: Path) -> None:
        self._silo_file = silo_file
        self._pull, self._make_load = (vars(run_clientapp)[name] for name in STEPS)
        self._task: tuple[Message, Context] | None = None

    def pull_task_input(self, *arguments: Any) -> Any:
        """Note the message, for the audit log."""
        pulled = self._pull(*arguments)
        self._task = pulled[0], pulled[1]
        return pulled

    def get_load_client_app_fn(self, *arguments: Any, **named: Any) -> Callable[..., Any]:
        """Return a function that checks the folder from which the ClientApp is then imported."""
        load = self._make_load(*arguments, **named)

        def load_checked(fab_id: str, fab_version: str, fab_hash: str) -> Any:
            self._check(get_project_dir(fab_id, fab_version, fab_hash))
            # The bundle imports its own modules, not those of the installed fedkd.
            for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
                del sys.modules[name]
            return load(fab_id, fab_version, fab_hash)

        return load_checked

    def _check(self, bundle: Path) -> None:
        """Refuse another bundle than the pinned one; the audit log has the refusal.

        Raises:
            NotAllowedError: it is another.
        """
        file = load_silo_file(self._silo_file)
        if file.code is None:
            raise UserError(f"{self._silo_file}: code: is missing; fedkd silo serve checks it")
        problem = find_code_problem(bundle, file.code)
        if problem is None:
            return
        reason = f"its owner allows other code alone (code): {problem}"
        if self._task is not None:
            message, context = self._task
            refused = Message(Error(FAILED, reason), reply_to=message)
            entry = {**describe_run(context), "code": None, **describe_reply(message, refused)}
            append_entry(Path(file.audit), entry)
        raise NotAllowedError(reason)


def main(silo_file: str) -> None:
    """Run Flower's program with the check."""
    pin = _Pin(Path(silo_file))
    if sys.pycache_prefix is None:
        raise UserError("compiled files of a bundle would be run unchecked; use fedkd silo serve")
    for name in STEPS:
        setattr(run_clientapp, name, getattr(pin, name))
    flwr_clientapp()
