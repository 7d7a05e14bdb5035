"""The Flower ClientApp of the bundle: a small program that hands deployed silos' messages on.

Flower starts a new process for every message. A deployed silo's message goes to the silo's worker
(:mod:`clients.worker`), which stays in memory, so this module imports no PyTorch. A simulated
silo's is answered in this process, by :mod:`clients.handlers`.
"""

from __future__ import annotations

import logging
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.forward import NoWorkerError, answer_in_worker
from fedkd.messages import keys

_logger = logging.getLogger("flwr")


def answer(message: Message, context: Context) -> Message:
    """Answer one message of the contract."""
    silo_file = context.node_config.get(keys.NODE_SILO)
    if silo_file is not None:
        try:
            return answer_in_worker(message, context, Path(str(silo_file)))
        except NoWorkerError as error:
            _logger.warning("the silo answers without a worker process: %s", error)
    from clients.handlers import app as in_this_process

    return in_this_process(message, context)


app = ClientApp()
for register in (
    *(app.query("describe"), app.query("teacher"), app.query("distil")),
    *(app.train(), app.evaluate(), app.query("receive"), app.query("sums")),
):
    register(answer)
