"""Who gets in at a TLS port, by real handshakes."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from raftkv.http import HttpServer, Tls, listen
from raftkv.http.asgi import CERTIFICATE_USER, Receive, Scope, Send
from raftkv.http.tls import DialTls, Guard, Refused, common_name, is_for
from tests.support.certificates import Authority, trusting

WAIT_SECONDS = 90.0
Pair = tuple[Path, Path]


async def tell_user(scope: Scope, receive: Receive, send: Send) -> None:
    body = b"user=" + scope[CERTIFICATE_USER].encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


class World:
    """An authority, a port's rules and a client's."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = Authority(directory)
        certificate, key = self.authority.issue("server")
        self.tls = Tls(certificate=certificate, key=key)
        self.asking = replace(self.tls, client_ca=self.authority.file, names_are_users=True)

    def client(self, pair: Pair | None = None, ca: Path | None = None) -> ssl.SSLContext:
        context = trusting(ca or self.authority.file)
        if pair is not None:
            context.load_cert_chain(*pair)
        return context


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@contextlib.asynccontextmanager
async def serving(tls: Tls) -> AsyncIterator[HttpServer]:
    server = HttpServer(tell_user, listen("127.0.0.1", 0), grace_seconds=1.0, tls=tls)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def ask(server: HttpServer, context: ssl.SSLContext) -> str:
    """The user that the application sees; or why there is no answer."""
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            reader, writer = await asyncio.open_connection(*server.address.split(":"), ssl=context)
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = await reader.read()
            writer.close()
    except ssl.SSLCertVerificationError as error:
        return f"not verified: {error.verify_message}"
    except OSError:
        return "refused"
    return answer.rpartition(b"user=")[2].decode() if b"user=" in answer else "refused"


Run = Callable[[object], None]


def test_only_certificates_of_the_authority_get_in(world: World, run: Run) -> None:
    stranger = Authority(world.directory / "other").issue("alice")

    async def scenario() -> None:
        async with serving(world.asking) as server:
            assert await ask(server, world.client(world.authority.issue("alice"))) == "alice"
            assert await ask(server, world.client()) == "refused"
            assert await ask(server, world.client(stranger)) == "refused"
            assert await ask(server, world.client(world.authority.issue("late", expired=True))) == "refused"
            other = Authority(world.directory / "other").file
            assert (await ask(server, world.client(ca=other))).startswith("not verified")
        async with serving(replace(world.asking, names_are_users=False)) as server:
            assert await ask(server, world.client(world.authority.issue("alice"))) == ""
        async with serving(world.tls) as server:
            assert await ask(server, world.client()) == ""

    run(scenario)


@pytest.mark.parametrize("der", [False, True], ids=["pem", "der"])
def test_revoked_certificates_are_refused_as_the_list_is_now(world: World, run: Run, der: bool) -> None:
    alice, bob = world.authority.issue("alice"), world.authority.issue("bob")
    revoked = world.authority.revoke(alice[0], der=der)

    async def scenario() -> None:
        async with serving(replace(world.asking, revoked=revoked)) as server:
            assert await ask(server, world.client(alice)) == "refused"
            assert await ask(server, world.client(bob)) == "bob"
            world.authority.revoke(alice[0], bob[0], der=der)
            assert await ask(server, world.client(bob)) == "refused"
            world.authority.revoke(der=der)
            assert await ask(server, world.client(alice)) == "alice"
            revoked.write_text("nonsense")
            assert await ask(server, world.client(alice)) == "refused"

    run(scenario)


def test_names_that_are_not_allowed_are_refused(world: World, run: Run) -> None:
    here, there = world.authority.issue("a", ["n1.x.org"]), world.authority.issue("b", ["n2.y.org"])

    async def scenario() -> None:
        async with serving(replace(world.asking, allowed_hosts=("n1.x.org",))) as server:
            assert await ask(server, world.client(here)) == "a"
            assert await ask(server, world.client(there)) == "refused"
        async with serving(replace(world.asking, allowed_names=("b", "c"))) as server:
            assert await ask(server, world.client(here)) == "refused"
            assert await ask(server, world.client(there)) == "b"

    run(scenario)


def test_replaced_files_count_from_the_next_connection_on(world: World, run: Run) -> None:
    new = Authority(world.directory / "new")
    alice = world.authority.issue("alice")

    async def scenario() -> None:
        async with serving(world.asking) as server:
            assert await ask(server, world.client(alice)) == "alice"
            world.tls.certificate.write_text("half written")
            assert await ask(server, world.client(alice)) == "alice"
            renewed, key = new.issue("server")
            world.tls.key.write_bytes(key.read_bytes())
            world.tls.certificate.write_bytes(renewed.read_bytes())
            assert (await ask(server, world.client(alice))).startswith("not verified")
            assert await ask(server, world.client(alice, new.file)) == "alice"
            assert world.asking.client_ca is not None
            world.asking.client_ca.write_bytes(new.file.read_bytes())
            assert await ask(server, world.client(alice, new.file)) == "refused"
            assert await ask(server, world.client(new.issue("bob"), new.file)) == "bob"

    run(scenario)


def test_sessions_are_not_resumed_past_the_checks(world: World, run: Run) -> None:
    alice = world.authority.issue("alice")
    revoked = world.authority.revoke()
    tls = replace(world.asking, revoked=revoked, maximum=ssl.TLSVersion.TLSv1_2)
    context = world.client(alice)

    async def scenario() -> None:
        async with serving(tls) as server:
            host, port = server.address.split(":")
            first = await asyncio.to_thread(session, context, host, int(port), None)
            world.authority.revoke(alice[0])
            with pytest.raises((OSError, AssertionError)):
                await asyncio.to_thread(session, context, host, int(port), first)

    run(scenario)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_nobody_is_given_a_ticket_to_resume_with(world: World, run: Run, version: ssl.TLSVersion) -> None:
    context = world.client(world.authority.issue("alice"))

    async def scenario() -> None:
        async with serving(replace(world.asking, minimum=version, maximum=version)) as server:
            host, port = server.address.split(":")
            found = await asyncio.to_thread(session, context, host, int(port), None)
            assert found is None or not found.has_ticket

    run(scenario)


class Shaken:
    """A handshake that is over."""

    def __init__(self, certificate: object, resumed: bool = False) -> None:
        self.certificate = certificate
        self.session_reused = resumed

    def getpeercert(self) -> object:
        return self.certificate


def test_who_shows_no_certificate_in_this_handshake_is_refused(world: World) -> None:
    guard = Guard(world.asking)
    shown = {"subject": ((("commonName", "alice"),),), "serialNumber": "0A"}
    assert guard.admit(Shaken(shown)) == "alice"  # type: ignore[arg-type]
    for refused in (Shaken(shown, resumed=True), Shaken(None), Shaken({})):
        with pytest.raises(Refused):
            guard.admit(refused)  # type: ignore[arg-type]
    assert Guard(world.tls).admit(Shaken(None)) == ""  # type: ignore[arg-type]


def test_of_several_common_names_the_last_counts() -> None:
    assert common_name({"subject": ((("commonName", "a"),), (("organizationName", "o"), ("commonName", "b")))}) == "b"
    assert common_name({"subject": ()}) == ""


def test_without_an_authoritys_file_those_of_the_system_count(
    world: World, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For who listens and for who dials."""
    other = Authority(world.directory / "other")
    monkeypatch.setenv("SSL_CERT_DIR", str(world.directory / "none"))

    async def dial(server: HttpServer, tls: DialTls) -> None:
        _, writer = await asyncio.open_connection(*server.address.split(":"), ssl=tls.context())
        writer.close()

    async def scenario() -> None:
        monkeypatch.setenv("SSL_CERT_FILE", str(world.authority.file))
        async with serving(replace(world.tls, client_certificates=True, names_are_users=True)) as server:
            assert await ask(server, world.client(world.authority.issue("alice"))) == "alice"
            assert await ask(server, world.client(other.issue("alice"))) == "refused"
            assert await ask(server, world.client()) == "refused"
        async with serving(world.tls) as server:
            await dial(server, DialTls())
            monkeypatch.setenv("SSL_CERT_FILE", str(other.file))
            with pytest.raises(ssl.SSLCertVerificationError):
                await dial(server, DialTls())
            await dial(server, DialTls(verify=False))

    run(scenario)


def session(context: ssl.SSLContext, host: str, port: int, known: ssl.SSLSession | None) -> ssl.SSLSession | None:
    import socket

    with (
        socket.create_connection((host, port), timeout=WAIT_SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=host, session=known) as secured,
    ):
        secured.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert secured.recv(100).startswith(b"HTTP/1.1 200")
        return secured.session


def test_versions_ciphers_and_alpn(world: World, run: Run) -> None:
    async def spoken(server: HttpServer, context: ssl.SSLContext) -> tuple[str | None, str | None, str]:
        _, writer = await asyncio.open_connection(*server.address.split(":"), ssl=context)
        found = writer.get_extra_info("ssl_object")
        writer.close()
        return found.selected_alpn_protocol(), found.version(), found.cipher()[0]

    async def scenario() -> None:
        old = world.client()
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        old.set_alpn_protocols(["http/1.1"])
        new = world.client()
        new.set_alpn_protocols(["h2", "http/1.1"])
        cipher = "ECDHE-ECDSA-AES128-GCM-SHA256"
        async with serving(replace(world.tls, ciphers=(cipher,))) as server:
            assert await spoken(server, old) == ("http/1.1", "TLSv1.2", cipher)
            assert (await spoken(server, new))[:2] == ("h2", "TLSv1.3")
        async with serving(replace(world.tls, minimum=ssl.TLSVersion.TLSv1_3)) as server:
            assert await ask(server, old) == "refused"
            assert await ask(server, world.client()) == ""
        async with serving(replace(world.tls, maximum=ssl.TLSVersion.TLSv1_2)) as server:
            assert (await spoken(server, new))[1] == "TLSv1.2"

    run(scenario)


def test_files_that_cannot_be_used_are_named(world: World) -> None:
    missing = world.directory / "missing.pem"
    with pytest.raises(ValueError, match=r"missing\.pem"):
        Guard(replace(world.tls, certificate=missing))
    with pytest.raises(ValueError, match=r"missing\.pem"):
        Guard(replace(world.asking, client_ca=missing))
    with pytest.raises(ValueError, match=r"revocation list .*missing\.pem"):
        Guard(replace(world.asking, revoked=missing))
    others = world.authority.issue("x")[1]
    with pytest.raises(ValueError, match=f": {others} is not the key of {world.tls.certificate}$"):
        Guard(replace(world.tls, key=others))
    text = world.directory / "text"
    text.write_text("BEGIN\n")
    with pytest.raises(ValueError, match=f": {text} has no certificate in PEM$"):
        Guard(replace(world.tls, certificate=text))
    with pytest.raises(ValueError, match=f": {text} has no key in PEM$"):
        Guard(replace(world.tls, key=text))
    with pytest.raises(ValueError, match=f": {text} has no certificate in PEM$"):
        Guard(replace(world.asking, client_ca=text))
    with pytest.raises(ValueError, match=f"^{text} is no certificate revocation list in PEM or DER$"):
        Guard(replace(world.asking, revoked=text))


def test_hosts_of_certificates() -> None:
    certificate = {"subjectAltName": (("DNS", "*.x.org"), ("DNS", "a.y"), ("IP Address", "::1"))}
    for host, fits in (("n.x.org", True), ("x.org", False), ("a.n.x.org", False), ("A.Y.", True), ("0:0::1", True)):
        assert is_for(certificate, host) is fits
