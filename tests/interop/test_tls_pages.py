"""Pages of ports with TLS, by a raftkv member and a real etcd 3.4: who may read them, and what is answered."""

import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.certificates import Authority, trusting
from tests.support.processes import CALL_SECONDS, START_SECONDS, Process, free_ports

pytestmark = pytest.mark.skipif(shutil.which("etcd") is None, reason="no etcd to compare with")

Pair = tuple[Path, Path]
Answer = tuple[int, dict[str, str], bytes]

INCIDENTAL = {"date", "content-length", "transfer-encoding"}
"""Headers that say when, and how the body is cut."""
PATHS = ("/health", "/metrics", "/version", "/nosuch")


class Ports:
    """Where one server listens: for clients, and for monitoring with TLS and without."""

    def __init__(self, authority: Authority, *flags: str) -> None:
        client, self.peer, secured, plain = free_ports(4)
        self._authority = authority
        self.all = {"client": client, "metrics": secured, "plain metrics": plain}
        certificate, key = authority.issue("server")
        url, peer = f"https://127.0.0.1:{client}", f"http://127.0.0.1:{self.peer}"
        self.flags = [
            *("--name", "m0", "--listen-client-urls", url, "--advertise-client-urls", url),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"m0={peer}"),
            *("--listen-metrics-urls", f"https://127.0.0.1:{secured},http://127.0.0.1:{plain}"),
            *("--cert-file", str(certificate), "--key-file", str(key), *flags),
        ]

    def ask(self, name: str, path: str, pair: Pair | None, *, secured: bool) -> Answer | None:
        """What a port answers; None: it lets nobody in who comes so."""
        with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
            connection = opened.enter_context(socket.create_connection(("127.0.0.1", self.all[name]), CALL_SECONDS))
            if secured:
                context = trusting(self._authority.file)
                if pair is not None:
                    context.load_cert_chain(*pair)
                connection = opened.enter_context(context.wrap_socket(connection, server_hostname="127.0.0.1"))
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            said = b""
            while piece := connection.recv(1 << 16):
                said += piece
            head, _, body = said.partition(b"\r\n\r\n")
            lines = head.decode().split("\r\n")
            if len(lines) > 1:
                headers = dict(line.lower().split(": ", 1) for line in lines[1:])
                return int(lines[0].split()[1]), {k: v for k, v in headers.items() if k not in INCIDENTAL}, body
        return None

    def wait_healthy(self, pair: Pair) -> None:
        deadline = time.monotonic() + START_SECONDS
        while (answer := self.ask("client", "/health", pair, secured=True)) is None or answer[0] != 200:
            assert time.monotonic() < deadline, answer
            time.sleep(0.05)


@contextlib.contextmanager
def both(directory: Path, authority: Authority, pair: Pair, *flags: str) -> Iterator[tuple[Ports, Ports]]:
    ours, theirs = Ports(authority, *flags), Ports(authority, *flags)
    member = Process("m0", directory, ours.all["client"], ours.peer, "")
    member.arguments = [*ours.flags, "--data-dir", str(directory / "raftkv")]
    command = ["etcd", *theirs.flags, "--data-dir", str(directory / "etcd")]
    etcd = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        member.start()
        for ports in (ours, theirs):
            ports.wait_healthy(pair)
        yield ours, theirs
    finally:
        etcd.kill()
        etcd.wait()
        member.kill()


@pytest.mark.parametrize("asked", [True, False], ids=["certificates asked for", "not asked for"])
def test_pages_under_tls_are_etcds(tmp_path: Path, asked: bool) -> None:
    authority = Authority(tmp_path / "ca")
    alice, stranger = authority.issue("alice"), Authority(tmp_path / "other").issue("alice")
    flags = ("--trusted-ca-file", str(authority.file), "--client-cert-auth") if asked else ()
    with both(tmp_path, authority, alice, *flags) as (ours, theirs):
        let_in = set()
        for name in ours.all:
            for path in PATHS:
                for who, pair, secured in (
                    ("alice", alice, True),
                    ("nobody", None, True),
                    ("stranger", stranger, True),
                    ("plainly", None, False),
                ):
                    answer, wanted = (ports.ask(name, path, pair, secured=secured) for ports in (ours, theirs))
                    case = f"{name} {path} {who}: {answer} is not {wanted}"
                    assert (answer is None) == (wanted is None), case
                    if answer is None or wanted is None:
                        continue
                    let_in.add((name, who))
                    assert answer[:2] == wanted[:2], case
                    if path == "/health":
                        assert [json.loads(one[2])["health"] for one in (answer, wanted)] == ["true", "true"]
                    elif path == "/metrics":
                        assert all(b"# TYPE etcd_server_has_leader gauge" in one[2] for one in (answer, wanted))
        everybody = ("alice",) if asked else ("alice", "nobody", "stranger")
        secured_ports = {(name, who) for name in ("client", "metrics") for who in everybody}
        assert let_in == {*secured_ports, ("plain metrics", "plainly")}
