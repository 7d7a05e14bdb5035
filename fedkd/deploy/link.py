"""The way from a silo to its SuperLink: reachable, certified, and on the same time."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

from fedkd.errors import UserError
from fedkd.util.finding import Finding

TIMEOUT = 10.0
DAY = 86_400.0
SOON_DAYS = 30
AHEAD_SECONDS, BEHIND_SECONDS = 5.0, 300.0
"""By how much a silo's clock may differ: Flower refuses signatures from further away."""


@dataclass(frozen=True)
class Address:
    """Where a SuperLink listens."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``host:port``."""
        host, _, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not host or not port.isdecimal() or not 0 < int(port) < 65_536 or "/" in host:
            raise UserError(f"--superlink: {text!r} is no address such as fl.example.org:8000")
        return cls(host, int(port))


def check_link(address: Address, root: Path | None, *, insecure: bool) -> Iterator[Finding]:
    """Ask a SuperLink whether it is well, over the very way that the SuperNode takes.

    Without ``root`` the system's authorities count; ``insecure`` is plain HTTP.
    """
    context = None
    if not insecure:
        try:
            context = ssl.create_default_context(cafile=None if root is None else str(root))
        except (OSError, ssl.SSLError) as error:
            yield Finding(
                "certificate", "broken", f"{root} cannot be read: {error}", "copy ca.pem again"
            )
            return
    connection = (
        http.client.HTTPConnection(address.host, address.port, timeout=TIMEOUT)
        if context is None
        else http.client.HTTPSConnection(
            address.host, address.port, timeout=TIMEOUT, context=context
        )
    )
    where = f"{address.host}:{address.port}"
    with closing(connection):
        try:
            connection.request("GET", "/health")
            until = _valid_until(connection.sock)
            date = connection.getresponse().getheader("Date")
            now = time.time()
        except (OSError, http.client.HTTPException) as error:
            yield _explain(where, error, insecure=insecure)
            return
    yield Finding("superlink", "ok", f"{where} answers")
    if not insecure:
        yield judge_certificate(until, now)
    yield judge_clock(date, now)


def judge_certificate(until: float | None, now: float) -> Finding:
    """Say how long a certificate is valid still; both in seconds since 1970."""
    if until is None:
        return Finding("certificate", "note", "is valid, but does not say until when")
    days = (until - now) / DAY
    value = f"is valid for {days:.0f} days more"
    if days < SOON_DAYS:
        advice = "have the server's certificate renewed: fedkd keys init --renew, on its host"
        return Finding("certificate", "note", value, advice)
    return Finding("certificate", "ok", value)


def judge_clock(date: str | None, now: float) -> Finding:
    """Compare this clock with a header ``Date``, which counts whole seconds."""
    try:
        theirs = parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return Finding("clock", "note", "cannot be compared: the SuperLink's response has no date")
    ahead = now - theirs
    off = max(0.0, ahead - 1) if ahead > 0 else ahead  # their second may be all but over
    value = "agrees with the SuperLink's to the second"
    if abs(off) >= 1:
        value = f"is {abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} the SuperLink's"
    if off > AHEAD_SECONDS or off < -BEHIND_SECONDS:
        advice = (
            f"set it, as by NTP: Flower refuses nodes more than {AHEAD_SECONDS:.0f} s ahead or "
            f"{BEHIND_SECONDS / 60:.0f} minutes behind"
        )
        return Finding("clock", "broken", value, advice)
    return Finding("clock", "ok", value)


def _valid_until(sock: socket.socket | None) -> float | None:
    if not isinstance(sock, ssl.SSLSocket):
        return None
    end = (sock.getpeercert() or {}).get("notAfter")
    return float(ssl.cert_time_to_seconds(end)) if isinstance(end, str) else None


def _explain(where: str, error: Exception, *, insecure: bool) -> Finding:
    if isinstance(error, ssl.SSLCertVerificationError):
        advice = (
            "give the server's ca.pem as --root-certificates; is the host one of those that "
            "`fedkd keys init --host` was told?"
        )
        return Finding("certificate", "broken", f"of {where}: {error.verify_message}", advice)
    if isinstance(error, ssl.SSLError):
        return Finding(
            "superlink", "broken", f"{where} does not use TLS: {error.reason}", "is it --insecure?"
        )
    if isinstance(error, socket.gaierror):
        return Finding("superlink", "broken", f"{where}: no such host is known", "check the name")
    advice = "is it running, and may this host open connections to that port?"
    if isinstance(error, http.client.HTTPException) and insecure:
        advice = "if it uses TLS, leave out --insecure"
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return Finding("superlink", "broken", f"{where} cannot be reached: {reason}", advice)
