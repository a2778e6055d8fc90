"""Three members that speak TLS to clients and to each other, by raftctl, etcdctl 3.4 and raw handshakes."""

import contextlib
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from raftkv.client import Client, ClientError
from raftkv.client.secure import ClientTls
from raftkv.server.leases import PEER_RENEW
from tests.support import secrets
from tests.support.certificates import Authority, trusting
from tests.support.processes import START_SECONDS, Cluster, Process, free_ports

NO_ETCDCTL = shutil.which("etcdctl") is None
TOOLS = {"etcdctl": ("etcdctl",), "raftctl": (sys.executable, "-m", "cli.raftctl")}
by_each_tool = pytest.mark.parametrize(
    "tool",
    [pytest.param("etcdctl", marks=pytest.mark.skipif(NO_ETCDCTL, reason="etcdctl is not installed")), "raftctl"],
)

Pair = tuple[Path, Path]


class Secured:
    """A cluster of three, whose ports are all https, and its authority."""

    def __init__(self, directory: Path, *flags: str, own: bool = False) -> None:
        self.directory = directory
        self.ca = Authority(directory / "ca")
        self.alice = self.ca.issue("alice")
        self.revoked = self.ca.issue("revoked")
        if not own:
            flags = (*self._flags("", "client-"), *self._flags("peer-", "peer-"), *flags)
        self.cluster = Cluster(directory, 3, *flags)
        self.metrics = free_ports(3)
        for member, port in zip(self.cluster.members, self.metrics, strict=True):
            member.arguments = [argument.replace("http://", "https://") for argument in member.arguments]
            member.arguments += ["--listen-metrics-urls", f"https://127.0.0.1:{port}"]

    def _flags(self, prefix: str, crl: str) -> tuple[str, ...]:
        certificate, key = self.ca.issue(f"{prefix}server")
        return (
            *(f"--{prefix}cert-file", str(certificate), f"--{prefix}key-file", str(key)),
            *(
                f"--{prefix}trusted-ca-file",
                str(self.ca.file),
                f"--{crl}crl-file",
                str(self.ca.revoke(self.revoked[0])),
            ),
            "--peer-client-cert-auth" if prefix else "--client-cert-auth",
            *(f"--{prefix or 'client-'}cert-allowed-hostname", "localhost"),
        )

    def ctl(
        self,
        *arguments: str,
        pair: Pair | None = None,
        member: int | None = None,
        seconds: int = 60,
        tool: str = "raftctl",
    ) -> tuple[int, str]:
        certificate, key = pair or self.alice
        members = self.cluster.members if member is None else [self.cluster.members[member]]
        result = subprocess.run(
            [
                *(*TOOLS[tool], "--endpoints", ",".join(f"https://{one.endpoint}" for one in members)),
                *("--command-timeout", f"{seconds}s", "--dial-timeout", f"{seconds}s"),
                *("--cacert", str(self.ca.file), "--cert", str(certificate), "--key", str(key)),
                *arguments,
            ],
            capture_output=True,
            text=True,
            timeout=180,
            env={**os.environ, "ETCDCTL_API": "3"},
        )
        secrets.look(tool, result.stderr)
        return result.returncode, result.stdout + result.stderr

    def start(self) -> None:
        for member in self.cluster.members:
            member.start()
        for number, member in enumerate(self.cluster.members):
            deadline = time.monotonic() + START_SECONDS
            while self.ctl("get", "ready", *self.flags, member=number, seconds=5)[0]:
                assert time.monotonic() < deadline, member.log()

    flags: tuple[str, ...] = ()


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    made = Secured(tmp_path_factory.mktemp("tls"))
    with stopping(made):
        made.start()
        yield made


@contextlib.contextmanager
def stopping(made: Secured) -> Iterator[None]:
    try:
        yield
    finally:
        for member in made.cluster.members:
            member.kill()


@by_each_tool
def test_clients_and_members_speak_tls(secured: Secured, tool: str) -> None:
    for number in range(3):
        assert secured.ctl("put", f"k{number}", "v", member=number, tool=tool) == (0, "OK\n")
    assert secured.ctl("get", "--prefix", "k", member=0, tool=tool)[1] == "k0\nv\nk1\nv\nk2\nv\n"
    status, text = secured.ctl("endpoint", "health", "--cluster", tool=tool)
    assert status == 0
    assert text.count("is healthy") == 3
    assert text.count("https://") == 3
    # A lease is renewed by the leader, whomever the client asks.
    for number in range(3):
        lease = secured.ctl("lease", "grant", "100", member=number, tool=tool)[1].split()[1]
        assert "keepalived" in secured.ctl("lease", "keep-alive", "--once", lease, member=number, tool=tool)[1]


METRICS = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
GATEWAY = b"POST /v3/maintenance/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"

WEBSOCKET = (
    b"GET /v3/watch HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


def shaken(port: int, pair: Pair | None, ca: Path, host: str = "127.0.0.1", said: bytes = METRICS) -> bool:
    """Whether a listener lets this client in: it answers, whatever it answers."""
    context = trusting(ca)
    if pair is not None:
        context.load_cert_chain(*pair)
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=60) as plain,
            context.wrap_socket(plain, server_hostname=host) as connection,
        ):
            connection.sendall(said)
            return connection.recv(100).startswith(b"HTTP/1.1")
    except (ssl.SSLError, ConnectionError):
        return False


def test_clients_of_ours_speak_tls(secured: Secured) -> None:
    member = secured.cluster.members[0]
    certificate, key = secured.alice
    for tls in (
        ClientTls(ca=secured.ca.file, certificate=certificate, key=key),
        ClientTls(ca=secured.ca.file, certificate=certificate, key=key, server_name="localhost"),
        ClientTls(certificate=certificate, key=key, verify=False),
    ):
        with member.client(tls=tls) as client:
            client.put("ours", "v")
            found = client.get("ours")
            assert found is not None
            assert found.value == b"v"
    for tls in (
        ClientTls(ca=secured.ca.file),
        ClientTls(certificate=certificate, key=key),
        ClientTls(ca=secured.ca.file, certificate=certificate, key=key, server_name="elsewhere"),
        None,
    ):
        with Client(member.endpoint, tls=tls, timeout=2.0, dial_timeout=1.0) as client, pytest.raises(ClientError):
            client.get("ours")
    flags = ["--endpoints", member.endpoint, "--cacert", str(secured.ca.file), "--cert", str(certificate)]
    for name, found in (("", True), ("localhost", True), ("elsewhere", False)):
        result = subprocess.run(
            [sys.executable, "-m", "cli.raftctl", *flags, "--key", str(key), "get", "ours"],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "RAFTCTL_TLS_SERVER_NAME": name, "RAFTCTL_COMMAND_TIMEOUT": "60s" if found else "2s"},
        )
        assert (result.returncode == 0, result.stdout) == (found, "ours\nv\n" if found else ""), result.stderr


def called(port: int, pair: Pair | None, ca: Path, path: str) -> bool:
    """Whether a listener lets this client in: it answers a gRPC call, whatever it answers."""
    certificate, key = (file.read_bytes() for file in pair) if pair else (None, None)
    credentials = grpc.ssl_channel_credentials(ca.read_bytes(), key, certificate)
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
        try:
            channel.unary_unary(path)(b"", timeout=60)
        except grpc.RpcError as error:
            return error.code() is not grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
    return True


Asks = Callable[[int, Pair | None, Path], bool]


def saying(said: bytes) -> Asks:
    return lambda port, pair, ca: shaken(port, pair, ca, said=said)


def calling(path: str) -> Asks:
    return lambda port, pair, ca: called(port, pair, ca, path)


LISTENERS: dict[str, tuple[str, Asks]] = {
    "gRPC": ("client", calling("/etcdserverpb.KV/Range")),
    "JSON": ("client", saying(GATEWAY)),
    "WebSocket": ("client", saying(WEBSOCKET)),
    "page": ("client", saying(METRICS)),
    "metrics page": ("metrics", saying(METRICS)),
    "gRPC of peers": ("peer", calling(PEER_RENEW)),
    "page of peers": ("peer", saying(METRICS)),
}
"""Every way in: which port, and how it is asked."""
STRANGERS: dict[str, Callable[[Secured], Pair | None]] = {
    "no certificate": lambda secured: None,
    "another authority": lambda secured: Authority(secured.directory / "other").issue("alice"),
    "expired": lambda secured: secured.ca.issue("late", expired=True),
    "revoked": lambda secured: secured.revoked,
    "another host": lambda secured: secured.ca.issue("far", ["far.example"]),
}
"""Who does not belong, by what is wrong with the certificate."""


def port_of(secured: Secured, which: str) -> int:
    member = secured.cluster.members[0]
    urls = {"client": member.endpoint, "peer": member.peer_url, "metrics": f":{secured.metrics[0]}"}
    return int(urls[which].rpartition(":")[2])


@pytest.mark.parametrize("stranger", STRANGERS)
@pytest.mark.parametrize("listener", LISTENERS)
def test_ghsa_3wh4_j44w_pg92_every_listener_refuses_who_does_not_belong(
    listener: str, stranger: str, secured: Secured
) -> None:
    which, asks = LISTENERS[listener]
    port = port_of(secured, which)
    assert not asks(port, STRANGERS[stranger](secured), secured.ca.file)
    assert asks(port, secured.alice, secured.ca.file), "and nobody else"


@pytest.mark.parametrize("which", ["client", "metrics", "peer"])
def test_every_listener_shows_its_own_certificate_and_speaks_nothing_but_tls(which: str, secured: Secured) -> None:
    port, ca = port_of(secured, which), secured.ca.file
    assert shaken(port, secured.alice, ca)
    assert not shaken(port, secured.alice, Authority(secured.directory / "other").file)
    assert not shaken(port, secured.alice, ca, host="elsewhere")
    with socket.create_connection(("127.0.0.1", port), timeout=60) as plain:
        plain.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert not plain.recv(100).startswith(b"HTTP/1.1")


@by_each_tool
def test_the_name_of_a_certificate_is_a_user(secured: Secured, tool: str) -> None:
    root, bob = secured.ca.issue("root"), secured.ca.issue("bob")
    for command in (
        ["user", "add", "root:s3cret"],
        ["user", "grant-role", "root", "root"],
        ["role", "add", "reader"],
        ["role", "grant-permission", "reader", "read", "shown"],
        ["user", "add", "bob:s3cret"],
        ["user", "grant-role", "bob", "reader"],
        ["put", "shown", "1"],
        ["auth", "enable"],
    ):
        status, text = secured.ctl(*command, tool=tool)
        assert status == 0, text
    try:
        assert secured.ctl("get", "shown", pair=bob, tool=tool) == (0, "shown\n1\n")
        assert "permission denied" in secured.ctl("put", "shown", "2", pair=bob, tool=tool)[1]
        assert secured.ctl("get", "shown", tool=tool)[0] != 0
        assert secured.ctl("put", "shown", "3", "--user", "root:s3cret", pair=bob, tool=tool)[0] == 0
        member = secured.cluster.members[0]
        answer = post(secured, int(member.endpoint.rpartition(":")[2]), bob)
        assert answer.startswith(b"HTTP/1.1 400")
        assert b"CommonName" in answer
    finally:
        assert secured.ctl("auth", "disable", pair=root, tool=tool)[0] == 0
        for command in (["user", "delete", "root"], ["user", "delete", "bob"], ["role", "delete", "reader"]):
            secured.ctl(*command, tool=tool)


def post(secured: Secured, port: int, pair: Pair) -> bytes:
    context = trusting(secured.ca.file)
    context.load_cert_chain(*pair)
    with (
        socket.create_connection(("127.0.0.1", port), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        body = b'{"key":"eA=="}'
        head = b"POST /v3/kv/range HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        connection.sendall(head + body)
        answer = b""
        while piece := connection.recv(4096):
            answer += piece
        return answer


@by_each_tool
def test_members_with_certificates_of_their_own(tmp_path: Path, tool: str) -> None:
    made = Secured(tmp_path, "--auto-tls", "--peer-auto-tls", own=True)
    made.flags = ("--insecure-skip-tls-verify",)
    with stopping(made):
        made.start()
        assert made.ctl("put", "a", "b", *made.flags, tool=tool) == (0, "OK\n")
        for number in range(3):
            assert made.ctl("get", "a", *made.flags, member=number, tool=tool) == (0, "a\nb\n")
        assert made.ctl("get", "a", seconds=5, tool=tool)[0] != 0


class Rotating:
    """A cluster of three, of which each member has its own files, for all its ports."""

    def __init__(self, directory: Path) -> None:
        self.old, self.new = Authority(directory / "old", "old"), Authority(directory / "new", "new")
        self.cluster = Cluster(directory, 3, "--log-level", "debug")
        for member in self.cluster.members:
            files = self._files(member)
            files.mkdir()
            self.exchange(member, self.old)
            member.arguments = [argument.replace("http://", "https://") for argument in member.arguments]
            for prefix in ("", "peer-"):
                for flag, name in (
                    ("cert-file", "shown.pem"),
                    ("key-file", "shown.key"),
                    ("trusted-ca-file", "ca.pem"),
                ):
                    member.arguments += [f"--{prefix}{flag}", str(files / name)]
                member.arguments.append("--peer-client-cert-auth" if prefix else "--client-cert-auth")

    @staticmethod
    def _files(member: Process) -> Path:
        return member.directory / f"{member.name}-tls"

    def exchange(self, member: Process, authority: Authority) -> None:
        """Put files of this authority where a member's are: what it shows, and whom it believes."""
        files = self._files(member)
        certificate, key = authority.issue(member.name)
        (files / "shown.key").write_bytes(key.read_bytes())
        (files / "shown.pem").write_bytes(certificate.read_bytes())
        (files / "ca.pem").write_bytes(authority.file.read_bytes())

    def client(self, member: Process, authority: Authority, **more: float) -> Client:
        certificate, key = authority.issue("alice")
        return member.client(tls=ClientTls(ca=authority.file, certificate=certificate, key=key), **more)

    def wait_ready(self, member: Process, authority: Authority) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with self.client(member, authority, timeout=5.0, dial_timeout=5.0) as client:
                    client.get("ready")
                    return
            except ClientError as error:
                assert time.monotonic() < deadline, f"{member.name}: {error}\n{member.log()}"
                time.sleep(0.05)

    def lets_in(self, member: Process, shown: Authority, believed: Authority) -> set[str]:
        """The ports of a member that let someone in with a certificate of one authority, who believes another."""
        ports = {"client": member.endpoint, "peer": member.peer_url}
        pair = shown.issue("bob")
        return {name for name, where in ports.items() if shaken(int(where.rpartition(":")[2]), pair, believed.file)}


def test_a_running_cluster_goes_over_to_another_authority(tmp_path: Path) -> None:
    made = Rotating(tmp_path)
    first, second, third = made.cluster.members
    try:
        for member in made.cluster.members:
            member.start()
        for member in made.cluster.members:
            made.wait_ready(member, made.old)
        with made.client(first, made.old) as lasting:
            lasting.put("a", "1")
            for member in (first, second):
                made.exchange(member, made.new)
            for member in (first, second):
                assert made.lets_in(member, made.new, made.new) == {"client", "peer"}
                assert made.lets_in(member, made.old, made.new) == set(), "its certificate is not believed any more"
                assert made.lets_in(member, made.old, made.old) == set(), "the member shows the new one"
            assert made.lets_in(third, made.old, made.old) == {"client", "peer"}
            assert made.lets_in(third, made.new, made.old) == set()
            # A client that had to connect anew would be refused.
            lasting.put("b", "2")
        third.kill()
        before = len(third.log()), len(first.log())
        third.start()
        # Each dials the other, and neither believes what the other shows.
        for member, other, start in ((third, first, before[0]), (first, third, before[1])):
            deadline = time.monotonic() + START_SECONDS
            refusal = re.compile(
                rf"no stream to member \w+ at {re.escape(other.peer_url[7:])}.*CERTIFICATE_VERIFY_FAILED"
            )
            while not refusal.search(member.log(), start):
                assert time.monotonic() < deadline, member.log()[start:]
                time.sleep(0.05)
        with made.client(first, made.new) as client:
            client.put("c", "3")
        with made.client(third, made.old, timeout=2.0) as client, pytest.raises(ClientError):
            client.get("c")
        made.exchange(third, made.new)
        # First and second never started again: they show, and believe, what they read since.
        made.wait_ready(third, made.new)
        first.kill()
        made.wait_ready(second, made.new)
        with made.client(third, made.new) as client:
            found = [client.get(key) for key in "abc"]
        assert [one and one.value for one in found] == [b"1", b"2", b"3"]
    finally:
        made.cluster.kill()
