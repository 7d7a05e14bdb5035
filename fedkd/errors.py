"""What ends a run or a study, and how it is shown."""

from __future__ import annotations


class FedKDError(Exception):
    """Something fedkd foresaw went wrong: shown as one sentence, without a traceback."""

    exit_code = 1


class UserError(FedKDError):
    """What the user asked for is impossible: the message says what, where, and what to do."""

    exit_code = 2


class UserCodeError(UserError):
    """A function of the user's own raised something: the message says which, what and where."""


class NotAllowedError(UserError):
    """A study names code that this host does not import."""


class RemoteError(Exception):
    """A fault of ours, or a lost worker, in another process; the message is its traceback."""
