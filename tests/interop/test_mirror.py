"""make-mirror between real servers, raftkv and etcd, both ways."""

import contextlib
import os
import pty
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raftkv.client import Client
from raftkv.client.secure import ClientTls
from raftkv.pb import rpc_pb2 as pb
from tests.cli.raftctl import environment, raftctl
from tests.cli.servers import ETCD, serve, serve_tls
from tests.cli.zygote import Zygote
from tests.support.certificates import Authority
from tests.support.processes import free_ports
from tests.support.restoring import changes, everything

SECONDS = 60.0
PAIRS = [
    pytest.param("etcd", "raftkv", marks=ETCD.marks),
    pytest.param("raftkv", "etcd", marks=ETCD.marks),
]


@contextlib.contextmanager
def mirror(source: str, sink: str, *flags: str, stderr: int = subprocess.PIPE) -> Iterator[subprocess.Popen[str]]:
    """A mirror at work; it ends only when it is told to."""
    command = [sys.executable, "-m", "cli.raftctl", "--endpoints", source, "make-mirror", *flags, sink]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment()) as running:
        try:
            yield running
            assert running.poll() in (None, 130)
        finally:
            running.kill()


def wait_for(client: Client, key: bytes, value: bytes) -> None:
    """Wait until a key has a value: what came before it is there, too."""
    deadline = time.monotonic() + SECONDS
    while (kv := client.get(key)) is None or kv.value != value:
        assert time.monotonic() < deadline, f"{key!r} does not come"
        time.sleep(0.05)


def content(client: Client, prefix: bytes) -> dict[bytes, bytes]:
    """Keys below a prefix, without it."""
    return {kv.key[len(prefix) :]: kv.value for kv in everything(client) if kv.key.startswith(prefix)}


def write(client: Client, rng: random.Random, times: int) -> None:
    for _ in range(times):
        keys = rng.sample(range(100), 4)
        ops = [pb.RequestOp(request_put=pb.PutRequest(key=b"/a/%d" % key, value=rng.randbytes(9))) for key in keys[1:]]
        ops.append(pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=b"/a/%d" % keys[0])))
        client.txn(pb.TxnRequest(success=ops))


@pytest.mark.parametrize(("source", "sink"), PAIRS)
def test_all_keys_and_every_change_are_copied(source: str, sink: str, tmp_path: Path) -> None:
    rng = random.Random(1)
    with (
        serve(source, tmp_path / "source") as here,
        serve(sink, tmp_path / "sink") as there,
        Client(here) as ours,
        Client(there) as theirs,
    ):
        ours.put("/b", "not meant")
        for number in range(300):
            ours.put(f"/a/first/{number}", "x" * number)
        write(ours, rng, 20)
        with mirror(here, there, "--prefix", "/a/", "--dest-prefix", "/copy/of/a/"):
            ours.put("/a/~copied", "1")
            wait_for(theirs, b"/copy/of/a/~copied", b"1")
            began = theirs.status().header.revision
            first = ours.status().header.revision + 1
            write(ours, rng, 40)
            ours.delete("/a/first/", prefix=True)
            ours.put("/a/done", "2")
            wait_for(theirs, b"/copy/of/a/done", b"2")
        assert content(theirs, b"/copy/of/a/") == content(ours, b"/a/")
        assert content(theirs, b"") == {b"/copy/of/a/" + key: value for key, value in content(ours, b"/a/").items()}
        # Revision by revision: 40, three of the 300 deletions, for a txn holds 128, and the last.
        assert theirs.status().header.revision - began == 44
        assert len(changes(ours, first, ours.status().header.revision)) > 400


@pytest.mark.parametrize("victim", ["source", "sink"])
@pytest.mark.parametrize(("source", "sink"), PAIRS)
def test_it_goes_on_when_a_side_was_gone(source: str, sink: str, victim: str, tmp_path: Path) -> None:
    """Killed with -9, and begun anew on the same data."""
    rng = random.Random(2)
    kinds = {"source": source, "sink": sink}
    ports = dict(zip(kinds, zip(*[iter(free_ports(4))] * 2, strict=True), strict=True))
    (here, there), other = (
        (f"127.0.0.1:{ports[side][0]}" for side in kinds),
        {"source": "sink", "sink": "source"}[victim],
    )

    def started(side: str) -> contextlib.AbstractContextManager[str]:
        return serve(kinds[side], tmp_path / side, ports[side])

    with contextlib.ExitStack() as stack:
        stack.enter_context(started(other))
        with started(victim):
            ours, theirs = (stack.enter_context(Client(endpoint)) for endpoint in (here, there))
            write(ours, rng, 10)
            stack.enter_context(mirror(here, there, "--prefix", "/a/"))
            ours.put("/a/~copied", "1")
            wait_for(theirs, b"/a/~copied", b"1")
            write(ours, rng, 30)
        if victim == "sink":
            write(ours, rng, 30)
        with started(victim):
            # Anew: a write on a connection that breaks would have an unknown outcome.
            ours, theirs = (stack.enter_context(Client(endpoint)) for endpoint in (here, there))
            write(ours, rng, 10)
            ours.put("/a/done", "2")
            wait_for(theirs, b"/a/done", b"2")
            assert content(theirs, b"") == content(ours, b"")
            assert len(content(theirs, b"")) > 50


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopped_it_tells_where_to_go_on(tmp_path: Path, number: signal.Signals) -> None:
    with (
        serve("raftkv", tmp_path / "source") as here,
        serve("raftkv", tmp_path / "sink") as there,
        Client(here) as ours,
        Client(there) as theirs,
    ):
        for key in ("a", "b", "c"):
            ours.put(key, "1")
        with mirror(here, there):
            wait_for(theirs, b"c", b"1")
        theirs.delete("a")
        revision = ours.delete("b").header.revision
        said = interrupted(here, there, revision, ours, theirs, number)
        # What the destination lost is not copied again; what the source deleted meanwhile is deleted.
        assert content(theirs, b"") == {b"c": b"1", b"d": b"1"}
        # The answer to the last write may not have come yet: that is made again, then.
        last = ours.status().header.revision
        assert re.search(rf"mirrored; go on with --rev ({last}|{last + 1})\r\n", said), said
        assert "\r" in said


def interrupted(here: str, there: str, revision: int, ours: Client, theirs: Client, number: signal.Signals) -> str:
    """Interrupt a mirror that began at a revision, on a terminal; what that showed."""
    terminal, its_end = pty.openpty()
    with mirror(here, there, "--rev", str(revision), stderr=its_end) as running:
        os.close(its_end)
        ours.put("d", "1")
        wait_for(theirs, b"d", b"1")
        running.send_signal(number)
        said = ""
        # A terminal whose other end is closed is an error.
        with contextlib.suppress(OSError):
            while data := os.read(terminal, 65536):
                said += data.decode()
        os.close(terminal)
        assert running.wait(SECONDS) == 130
    return said


def test_each_side_has_its_own_password(tmp_path: Path) -> None:
    with (
        serve("raftkv", tmp_path / "source") as here,
        serve("raftkv", tmp_path / "sink") as there,
        Zygote() as zygote,
        Client(there, user="root", password="s3cret-theirs") as theirs,
    ):
        for endpoint, password in ((here, "s3cret-ours"), (there, "s3cret-theirs")):
            words = (["put", "a", password], ["user", "add", f"root:{password}"], ["role", "add", "root"])
            for command in (*words, ["user", "grant-role", "root", "root"], ["auth", "enable"]):
                assert zygote.raftctl("--endpoints", endpoint, *command).status == 0
        with mirror(
            here, there, "--user", "root:s3cret-ours", "--dest-user", "root", "--dest-password", "s3cret-theirs"
        ):
            wait_for(theirs, b"a", b"s3cret-ours")
        refused = zygote.raftctl("--endpoints", here, "--user", "root:s3cret-ours", "make-mirror", there)
        assert refused.status == 1
        assert "user name is empty" in refused.stderr


def test_the_destination_is_reached_with_tls_of_its_own(tmp_path: Path) -> None:
    """With files of its own, whether or not the destination has a scheme; the source's are not shown to it."""
    authority = Authority(tmp_path / "ca")
    certificate, key = authority.issue("mirror")
    shown = ("--dest-cert", str(certificate), "--dest-key", str(key))
    trusted = ("--dest-cacert", str(authority.file))
    tls = ClientTls(ca=authority.file, certificate=certificate, key=key)
    with (
        serve("raftkv", tmp_path / "source") as here,
        serve_tls(tmp_path / "sink", authority) as there,
        Client(here) as ours,
        Client(there, tls=tls) as theirs,
        Zygote() as zygote,
    ):
        for value, destination, flags in (
            (b"1", there, (*shown, *trusted)),
            (b"2", f"https://{there}", (*shown, *trusted, "--dest-insecure-transport=false")),
        ):
            ours.put("a", value)
            with mirror(here, destination, *flags):
                wait_for(theirs, b"a", value)
        for flags in (shown, trusted, ("--dest-insecure-transport=false",)):
            words = ("make-mirror", "--dial-timeout", "500ms", *flags, there)
            assert zygote.raftctl("--endpoints", here, *words).status == 1, "no verified connection without all files"


REFUSALS = [
    ([], "make-mirror takes one destination argument"),
    (["a", "b"], "make-mirror takes one destination argument"),
    (["a", "--dest-prefix", "x", "--no-dest-prefix"], "cannot be set at the same time"),
    (["a", "--dest-cacert", "nowhere"], "--dest-cacert: cannot read nowhere"),
    (["a", "--dest-key", os.devnull], "--dest-cert and --dest-key are used together"),
    (["a", "--dest-insecure-transport=maybe"], 'invalid argument "maybe"'),
    (["127.0.0.1:1", "--dial-timeout", "200ms"], "context deadline exceeded"),
]


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as running:
        yield running


@pytest.mark.parametrize(("words", "problem"), REFUSALS, ids=[" ".join(words) or "nothing" for words, _ in REFUSALS])
def test_refused(words: list[str], problem: str, zygote: Zygote) -> None:
    done = zygote.raftctl("--endpoints", "127.0.0.1:1", "make-mirror", *words)
    assert done.status in (1, 128)
    assert problem in done.stderr


def test_history_that_is_gone_ends_it(tmp_path: Path) -> None:
    with serve("raftkv", tmp_path / "one") as one, Client(one) as client:
        for number in range(10):
            client.put("a", str(number))
        client.compact(8)
        done = raftctl("--endpoints", one, "make-mirror", "--rev", "3", "--dest-prefix", "copy/", one)
    assert done.status == 1
    assert "required revision has been compacted" in done.stderr
