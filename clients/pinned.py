"""The ``flwr-clientapp`` of ``fedkd silo serve``: it checks a bundle before any of it is imported.

A SuperNode starts this program, of the fedkd that is installed on the silo's host, for every
message. It is Flower's own program with one step more: the bundle's code must have the hash that
``code`` in ``silo.yaml`` pins. Names of Flower's that are not public are used here alone.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from flwr.app import Error, Message
from flwr.common.config import get_project_dir
from flwr.supernode.cli import flwr_clientapp
from flwr.supernode.runtime import run_clientapp

from clients.audit_entry import describe_reply, describe_run
from fedkd.deploy.audit import append_entry
from fedkd.deploy.bundle_hash import PACKAGES, find_code_problem
from fedkd.deploy.silo_file import load_silo_file
from fedkd.errors import NotAllowedError, UserError
from fedkd.messages.failures import FAILED


def add_check(silo_file: Path) -> None:
    """Add the check between the two steps of Flower's program that pull a task and load its app."""
    pull, make_load = (vars(run_clientapp)[name] for name in ("pull_task_input", _MAKE_LOAD))
    task: list[Any] = []

    def pull_task_input(*arguments: Any) -> Any:
        task[:] = pull(*arguments)
        return tuple(task)

    def get_load_client_app_fn(**named: Any) -> Any:
        def load(*bundle: str) -> Any:
            _check(silo_file, get_project_dir(*bundle), task)
            # The bundle imports its own modules, not those of the installed fedkd.
            for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
                del sys.modules[name]
            return make_load(**named)(*bundle)

        return load

    vars(run_clientapp).update({"pull_task_input": pull_task_input})
    vars(run_clientapp).update({_MAKE_LOAD: get_load_client_app_fn})


_MAKE_LOAD = "get_load_client_app_fn"


def _check(silo_file: Path, bundle: Path, task: list[Any]) -> None:
    """Refuse another bundle than the pinned one; the audit log has the refusal.

    Raises:
        NotAllowedError: it is another.
    """
    file = load_silo_file(silo_file)
    problem = find_code_problem(bundle, file.code or "")
    if problem is not None:
        reason = f"its owner allows other code alone (code): {problem}"
        refused = Message(Error(FAILED, reason), reply_to=task[0])
        entry = {**describe_run(task[1]), "code": None, **describe_reply(task[0], refused)}
        append_entry(Path(file.audit), entry)
        raise NotAllowedError(reason)


def main(silo_file: str) -> None:
    """Run Flower's program with the check."""
    if sys.pycache_prefix is None:
        raise UserError("compiled files of a bundle would be run unchecked; use fedkd silo serve")
    add_check(Path(silo_file))
    flwr_clientapp()
