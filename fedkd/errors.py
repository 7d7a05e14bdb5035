"""The two ways in which fedkd refuses to go on."""

from __future__ import annotations


class FedKDError(Exception):
    """Something fedkd foresaw went wrong: shown as one sentence, without a traceback."""

    exit_code = 1


class UserError(FedKDError):
    """What the user asked for is impossible: the message says what, where, and what to do."""

    exit_code = 2
