"""The ``flwr-clientapp`` of ``fedkd silo serve``: it checks a bundle before any of it is imported.

A SuperNode starts this program, of the fedkd that is installed on the silo's host, for every
message. It is Flower's own program with one step more: the bundle's code must have the hash that
``code`` in ``silo.yaml`` pins. Names of Flower's that are not public are used here alone.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message
from flwr.common.config import get_project_dir
from flwr.supernode.cli import flwr_clientapp
from flwr.supernode.runtime import run_clientapp

from fedkd.deploy.bundle_hash import PACKAGES, find_code_problem
from fedkd.errors import NotAllowedError, UserError
from fedkd.messages.failures import FAILED


def add_check(code: str, audit: Path) -> None:
    """Add the check between the two steps of Flower's program that pull a task and load its app.

    Args:
        code: hash of the code that may run.
        audit: the silo's audit log.
    """
    pull, make_load = (vars(run_clientapp)[name] for name in ("pull_task_input", _MAKE_LOAD))
    task: list[Any] = []

    def pull_task_input(*arguments: Any) -> Any:
        task[:] = pull(*arguments)
        return tuple(task)

    def get_load_client_app_fn(**named: Any) -> Any:
        def load(*bundle: str) -> Any:
            problem = find_code_problem(get_project_dir(*bundle), code)
            if problem is not None:
                _refuse(problem, audit, *task[:2])
            # The bundle imports its own modules, not those of the installed fedkd.
            for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
                del sys.modules[name]
            return make_load(**named)(*bundle)

        return load

    vars(run_clientapp).update({"pull_task_input": pull_task_input})
    vars(run_clientapp).update({_MAKE_LOAD: get_load_client_app_fn})


_MAKE_LOAD = "get_load_client_app_fn"


def _refuse(problem: str, audit: Path, message: Message, context: Context) -> None:
    """Write a refusal to the audit log, and raise it as a NotAllowedError."""
    # Imported here, because this program is started for every message.
    from clients.audit_entry import describe_reply, describe_run
    from fedkd.deploy.audit import append_entry

    reason = f"its owner allows other code alone (code): {problem}"
    refused = Message(Error(FAILED, reason), reply_to=message)
    append_entry(audit, {**describe_run(context), "code": None, **describe_reply(message, refused)})
    raise NotAllowedError(reason)


def main(code: str, audit: str) -> None:
    """Run Flower's program with the check; for the arguments see :func:`add_check`."""
    if sys.pycache_prefix is None:
        raise UserError("compiled files of a bundle would be run unchecked; use fedkd silo serve")
    add_check(code, Path(audit))
    flwr_clientapp()
