"""Keys for real hosts: a certificate authority, the server's certificate, and the silos' keys.

TLS lets silos know the server, and keys let the server know silos (Flower's SuperNode
authentication). All keys are on NIST's curve P-384, which Flower takes.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedkd.errors import UserError
from fedkd.util.files import write_new
from fedkd.util.names import SILO_NAME

CA_KEY, CA_CERTIFICATE = "ca.key", "ca.pem"
SERVER_KEY, SERVER_CERTIFICATE = "server.key", "server.pem"
CA_DAYS, SERVER_DAYS = 3650, 825
LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Where the SuperLink's own processes find it: they check its certificate too."""

_HOST = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,62}))*"
)
_PRIVATE, _PUBLIC = 0o600, 0o644


@dataclass(frozen=True)
class Authority:
    """Who signs certificates."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


def make_server_keys(
    folder: Path, hosts: Sequence[str], *, days: int = SERVER_DAYS, renew: bool = False
) -> list[Path]:
    """Make a certificate authority and the server's certificate.

    Args:
        folder: where ``ca.key``, ``ca.pem``, ``server.key`` and ``server.pem`` go.
        hosts: names or addresses by which silos reach the server.
        days: how long the server's certificate is valid; the authority is for ten years.
        renew: let the authority that is in the folder sign a new certificate for the server.

    Returns:
        The files that were written.

    Raises:
        UserError: a host is none, files are there already, or the authority to renew by is not.
    """
    names = [_subject(host) for host in dict.fromkeys((*hosts, *LOOPBACK))]
    kept = [CA_KEY, CA_CERTIFICATE] if renew else []
    made = [
        name
        for name in (CA_KEY, CA_CERTIFICATE, SERVER_KEY, SERVER_CERTIFICATE)
        if name not in kept
    ]
    if not renew and (there := [name for name in made if (folder / name).exists()]):
        raise UserError(
            f"{folder / there[0]} is there already, and silos that trust it would be lost; add "
            "--renew for a new server certificate by the same authority, or --out for another place"
        )
    authority = _read_authority(folder) if renew else _make_authority()
    key = ec.generate_private_key(ec.SECP384R1())
    certificate = _sign_server(authority, key, names, days)
    contents = {
        CA_KEY: _pem(authority.key),
        CA_CERTIFICATE: authority.certificate.public_bytes(serialization.Encoding.PEM),
        SERVER_KEY: _pem(key),
        SERVER_CERTIFICATE: certificate.public_bytes(serialization.Encoding.PEM),
    }
    for name in made:
        mode = _PRIVATE if name.endswith(".key") else _PUBLIC
        write_new(folder / name, contents[name], mode=mode, replace=renew)
    return [folder / name for name in made]


def make_silo_key(folder: Path, name: str) -> tuple[Path, Path]:
    """Make a silo's key: the private half for its SuperNode, the public one for the SuperLink.

    The files are named ``NAME`` and ``NAME.pub``.

    Returns:
        The private and the public file, both as OpenSSH writes them.

    Raises:
        UserError: the name is none of a silo, or a key of that name is there already.
    """
    if not SILO_NAME.fullmatch(name):
        raise UserError(
            f"{name!r} is no name for a silo: use letters, digits, '.', '_' and '-', at most 64"
        )
    private, public = folder / name, folder / f"{name}.pub"
    if name in (CA_KEY, CA_CERTIFICATE, SERVER_KEY, SERVER_CERTIFICATE):
        raise UserError(f"{name!r} is the name of the server's own file; name the silo otherwise")
    key = ec.generate_private_key(ec.SECP384R1())
    openssh = serialization.PrivateFormat.OpenSSH
    halves = {
        private: (key.private_bytes(serialization.Encoding.PEM, openssh, _PLAIN), _PRIVATE),
        public: (
            key.public_key().public_bytes(
                serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
            )
            + f" {name}\n".encode(),
            _PUBLIC,
        ),
    }
    if there := [path for path in halves if path.exists()]:
        raise UserError(
            f"{there[0]} is there already; to give the silo a new key, remove it and register the "
            "new one"
        )
    for path, (data, mode) in halves.items():
        write_new(path, data, mode=mode)
    return private, public


_PLAIN = serialization.NoEncryption()


def _make_authority() -> Authority:
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedkd authority")])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        _builder(name, name, key.public_key(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA384())
    )
    return Authority(key, certificate)


def _read_authority(folder: Path) -> Authority:
    try:
        certificate = x509.load_pem_x509_certificate((folder / CA_CERTIFICATE).read_bytes())
        key = serialization.load_pem_private_key((folder / CA_KEY).read_bytes(), password=None)
    except FileNotFoundError as error:
        raise UserError(f"--renew: there is no {error.filename}; leave --renew out") from error
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"--renew: the authority in {folder} cannot be read: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UserError(f"--renew: {folder / CA_KEY} is no elliptic-curve key, as fedkd makes them")
    if key.public_key() != certificate.public_key():
        raise UserError(
            f"--renew: {CA_KEY} and {CA_CERTIFICATE} in {folder} are of two authorities"
        )
    return Authority(key, certificate)


def _sign_server(
    authority: Authority,
    key: ec.EllipticCurvePrivateKey,
    names: Sequence[x509.GeneralName],
    days: int,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedkd server")])
    issuer = authority.certificate.subject
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        _builder(subject, issuer, key.public_key(), days)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(identifier, critical=False)
        .add_extension(signer, critical=False)
        .sign(authority.key, hashes.SHA384())
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    # Clocks of silos may be behind ours.
    begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=days))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _subject(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not _HOST.fullmatch(host):
        raise UserError(
            f"--host: {host!r} is no name or address of a host; leave out port and scheme"
        )
    return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, _PLAIN)
