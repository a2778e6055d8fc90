"""`make certs`: who shows what it made gets in, and the keys are nobody else's."""

import asyncio
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from raftkv.http.tls import DialTls, Tls
from tests.unit.http.test_tls import ask, serving

ROOT = Path(__file__).resolve().parents[2]


def make(directory: Path, *arguments: str) -> None:
    command = [sys.executable, "scripts/certs.py", "--directory", str(directory), *arguments]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def client(directory: Path, name: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=directory / "ca.pem")
    context.load_cert_chain(directory / f"{name}.pem", directory / f"{name}.key")
    return context


def test_servers_members_and_clients_know_each_other(tmp_path: Path) -> None:
    certs = tmp_path / "certs"
    make(certs)
    kept = (certs / "ca.pem").read_bytes()
    old = client(certs, "client")
    make(certs, "--user", "ann")
    assert (certs / "ca.pem").read_bytes() == kept

    async def scenario() -> None:
        for name in ("server", "peer"):
            rules = Tls(certificate=certs / f"{name}.pem", key=certs / f"{name}.key", client_ca=certs / "ca.pem")
            async with serving(rules) as server:
                assert await ask(server, client(certs, "client")) == ""
                assert await ask(server, old) == ""
                assert await ask(server, ssl.create_default_context(cafile=certs / "ca.pem")) == "refused"
                dial = DialTls(certificate=certs / "peer.pem", key=certs / "peer.key", ca=certs / "ca.pem").context()
                dial.set_alpn_protocols(["http/1.1"])
                assert await ask(server, dial) == ""
        users = Tls(
            certificate=certs / "server.pem",
            key=certs / "server.key",
            client_ca=certs / "ca.pem",
            names_are_users=True,
        )
        async with serving(users) as server:
            assert await ask(server, client(certs, "client")) == "ann"
            assert await ask(server, old) == "root"
        # A client's certificate is none of a server.
        rules = Tls(certificate=certs / "client.pem", key=certs / "client.key")
        async with serving(rules) as server:
            assert (await ask(server, client(certs, "client"))).startswith("not verified")

    asyncio.run(scenario())


@pytest.mark.parametrize("open_directory", [False, True])
def test_keys_are_closed_to_other_users(tmp_path: Path, open_directory: bool) -> None:
    certs = tmp_path / "certs"
    if open_directory:
        certs.mkdir(mode=0o755)
        certs.chmod(0o755)
    make(certs)
    assert mode(certs / "ca.key") == 0o600
    assert mode(certs) == (0o755 if open_directory else 0o700)
    assert mode(certs / "server.key") == (0o600 if open_directory else 0o644)
