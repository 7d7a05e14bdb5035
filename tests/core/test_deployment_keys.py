"""Keys: what they are good for, who may read them, and that none is ever lost."""

from __future__ import annotations

import ipaddress
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedkd.deploy.keys import make_server_keys, make_silo_key
from fedkd.errors import UserError


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_server_is_certified_for_its_hosts_and_for_itself(tmp_path: Path) -> None:
    make_server_keys(tmp_path, ["fl.example.org", "192.0.2.7"], days=30)
    server, ca = certificate(tmp_path / "server.pem"), certificate(tmp_path / "ca.pem")
    server.verify_directly_issued_by(ca)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fl.example.org", "localhost"]
    addresses = [ipaddress.ip_address(text) for text in ("192.0.2.7", "127.0.0.1", "::1")]
    assert names.get_values_for_type(x509.IPAddress) == addresses
    assert (server.not_valid_after_utc - server.not_valid_before_utc).days == 30
    constraints = ca.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert constraints.ca
    assert constraints.path_length == 0
    own = serialization.load_pem_private_key((tmp_path / "server.key").read_bytes(), None)
    assert own.public_key() == server.public_key()


def test_private_halves_are_for_their_owner_alone(tmp_path: Path) -> None:
    make_server_keys(tmp_path, ["h"])
    private, public = make_silo_key(tmp_path, "north")
    assert {mode(path) for path in (tmp_path / "ca.key", tmp_path / "server.key", private)} == {
        0o600
    }
    assert {mode(path) for path in (tmp_path / "ca.pem", tmp_path / "server.pem", public)} == {
        0o644
    }
    assert not list(tmp_path.glob(".*")), "nothing half-written stays"


def test_a_silo_key_is_one_that_flower_takes(tmp_path: Path) -> None:
    private, public = make_silo_key(tmp_path, "north")
    key = serialization.load_ssh_private_key(private.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == "secp384r1"
    assert serialization.load_ssh_public_key(public.read_bytes()) == key.public_key()


def test_no_key_is_overwritten(tmp_path: Path) -> None:
    make_server_keys(tmp_path, ["h"])
    make_silo_key(tmp_path, "north")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match=r"ca\.key is there already.*--renew"):
        make_server_keys(tmp_path, ["h"])
    with pytest.raises(UserError, match="north is there already"):
        make_silo_key(tmp_path, "north")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_renewal_keeps_the_authority_that_silos_trust(tmp_path: Path) -> None:
    make_server_keys(tmp_path, ["h"])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    written = make_server_keys(tmp_path, ["h", "g"], renew=True)
    assert [path.name for path in written] == ["server.key", "server.pem"]
    for name in ("ca.key", "ca.pem"):
        assert (tmp_path / name).read_bytes() == before[name]
    assert (tmp_path / "server.pem").read_bytes() != before["server.pem"]
    certificate(tmp_path / "server.pem").verify_directly_issued_by(certificate(tmp_path / "ca.pem"))
    assert mode(tmp_path / "server.key") == 0o600


def test_renewal_needs_an_authority(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leave --renew out"):
        make_server_keys(tmp_path, ["h"], renew=True)


@pytest.mark.parametrize("host", ["https://h", "h:8000", "a b", "-h", ""])
def test_what_is_no_host_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(UserError, match="--host"):
        make_server_keys(tmp_path, [host])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../north", "a/b", "", "ca.key", "server.pem", ".north"])
def test_what_is_no_name_of_a_silo_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError):
        make_silo_key(tmp_path, name)
    assert not list(tmp_path.iterdir())
