"""A hostile silo on a real host: its ClientApp answers, and then the answer is spoilt.

Python imports this module when it starts, where the folder is on the path. It does nothing but in
a process of Flower's that runs a ClientApp, on a host whose file names the messages to spoil.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

FILE = Path(os.environ.get("FEDKD_TEST_HOSTILE", os.devnull))
HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (0x" + "f" * 4800 + ",)}\n"


def spoil(kind: str, records: dict[str, Any]) -> None:
    """Change the records of a reply to what no honest silo sends."""
    from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord

    if kind == "query.teacher":
        records["info"] = ConfigRecord({**records["info"], "problem": ""})
    elif kind == "train":
        arrays = dict(records["arrays"])
        first = next(iter(arrays))
        data = b"\x93NUMPY\x01\x00" + len(HEADER).to_bytes(2, "little") + HEADER.encode()
        arrays[first] = Array("float32", arrays[first].shape, "numpy.ndarray", data)
        records["arrays"] = ArrayRecord(arrays)
    elif kind == "evaluate":
        records["metrics"] = MetricRecord({**records["metrics"], "num-examples": []})


def patch() -> None:
    """Let every ClientApp of this process spoil its replies to the named types of messages."""
    from flwr.app import Message, RecordDict
    from flwr.clientapp import ClientApp

    answer = ClientApp.__call__

    def call(self: Any, message: Any, context: Any) -> Any:
        reply = answer(self, message, context)
        kind = message.metadata.message_type
        if kind not in json.loads(FILE.read_text()) or reply.has_error():
            return reply
        records = dict(reply.content)
        spoil(kind, records)
        return Message(RecordDict(records), reply_to=message)

    ClientApp.__call__ = call  # type: ignore[method-assign]


if FILE.is_file() and any("clientapp" in part for part in sys.orig_argv):
    patch()
