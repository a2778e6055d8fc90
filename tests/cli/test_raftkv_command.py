"""The `raftkv` command as a real process: what it refuses, how it starts, how it stops."""

import contextlib
import errno
import fcntl
import json
import os
import re
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from raftkv.pb import rpc_pb2
from tests.support import secrets
from tests.support.processes import free_ports

BOUND_SECONDS = 120
COMMAND = [sys.executable, "-m", "raftkv"]
ANY_PORTS = [
    *("--listen-client-urls", "http://127.0.0.1:0", "--advertise-client-urls", "http://127.0.0.1:2379"),
    *("--listen-peer-urls", "http://127.0.0.1:0"),
]
STARTED = re.compile(r"clients on (\S+), peers on (\S+), data in (\S+)")


def environment() -> dict[str, str]:
    settings = {name: value for name, value in os.environ.items() if not name.startswith("RAFTKV_")}
    return settings | {"PYTHONPATH": str(Path(__file__).parents[2])}


def run(directory: Path, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [*COMMAND, *arguments],
        cwd=directory,
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=BOUND_SECONDS,
        check=False,
    )
    secrets.look("raftkv", done.stderr)
    return done


def refused(directory: Path, *arguments: str, **variables: str) -> str:
    """Run a command that must be refused; its one line."""
    before = snapshot(directory)
    result = run(directory, *arguments, **variables)
    assert result.returncode == 1, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("raftkv: ")]
    assert len(lines) == 1, result.stderr
    assert result.stderr.splitlines()[-1] == lines[0]
    assert snapshot(directory) == before, "something was touched"
    return lines[0]


def snapshot(directory: Path) -> dict[str, tuple[int, int, int]]:
    """Every file with its mode, size and time of change; LMDB's lock table is not data, and who looks touches it."""
    status = {path: path.lstat() for path in sorted(directory.rglob("*")) if path.name != "lock.mdb"}
    return {str(path): (s.st_mode, s.st_size, 0 if path.is_dir() else s.st_mtime_ns) for path, s in status.items()}


class Running:
    """A started member."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.lines: list[str] = []
        assert process.stderr is not None
        for line in process.stderr:
            self.lines.append(line.rstrip("\n"))
            found = STARTED.search(line)
            if found:
                self.client, self.peer, self.data = found.groups()
                return
        raise AssertionError("\n".join(self.lines))

    def put(self, key: bytes, value: bytes) -> None:
        request = rpc_pb2.PutRequest(key=key, value=value)
        self._call("Put", request.SerializeToString())

    def get(self, key: bytes) -> list[bytes]:
        answer = self._call("Range", rpc_pb2.RangeRequest(key=key).SerializeToString())
        return [kv.value for kv in rpc_pb2.RangeResponse.FromString(answer).kvs]

    def _call(self, method: str, request: bytes) -> bytes:
        with grpc.insecure_channel(self.client) as channel:
            call = channel.unary_unary(f"/etcdserverpb.KV/{method}", None, None)
            return bytes(call(request, timeout=BOUND_SECONDS, wait_for_ready=True))

    def wait(self) -> tuple[int, str]:
        """Wait for the end: exit status and what was said since the start."""
        _, rest = self.process.communicate(timeout=BOUND_SECONDS)
        return self.process.returncode, rest


@contextlib.contextmanager
def started(directory: Path, *arguments: str) -> Iterator[Running]:
    process = subprocess.Popen(
        [*COMMAND, *ANY_PORTS, *arguments], cwd=directory, env=environment(), stderr=subprocess.PIPE, text=True
    )
    # A member that never says that it started must not hang the test.
    guard = subprocess.Popen(
        ["/bin/sh", "-c", f"sleep {BOUND_SECONDS}; kill -KILL {process.pid}"], start_new_session=True
    )
    try:
        yield Running(process)
    finally:
        os.killpg(guard.pid, signal.SIGKILL)
        guard.wait()
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def stop(running: Running, number: signal.Signals = signal.SIGTERM) -> str:
    running.process.send_signal(number)
    status, rest = running.wait()
    assert status == 0, rest
    return rest


# Before anything is started


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data-dri", "x"], "unknown flag --data-dri: did you mean --data-dir?"),
        (["--election-timeout", "60000"], "--election-timeout[60000ms] is too long"),
        (["--listen-client-urls", "http://127.0.0.1:0"], "--advertise-client-urls is required"),
        ([*ANY_PORTS, "--initial-cluster", "a=http://127.0.0.1:1"], 'couldn\'t find local name "default"'),
        (["--initial-cluster-state", "maybe"], "--initial-cluster-state: 'maybe' is not one of"),
        (["stray"], "unexpected extra argument"),
        (["wal"], "usage: raftkv wal dump DIR"),
        (["wal", "dump", "missing"], "missing holds no log"),
    ],
)
def test_refused_arguments(tmp_path: Path, arguments: list[str], words: str) -> None:
    assert words in refused(tmp_path, *arguments)


def test_an_unknown_key_in_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "n.yaml").write_text("election-timout: 1000\n")
    assert "unknown key election-timout: did you mean election-timeout?" in refused(tmp_path, "--config-file", "n.yaml")


def test_a_bad_variable_is_named(tmp_path: Path) -> None:
    assert "(from RAFTKV_MAX_TXN_OPS)" in refused(tmp_path, RAFTKV_MAX_TXN_OPS="many")


def test_help_and_version(tmp_path: Path) -> None:
    version = run(tmp_path, "--version")
    assert (version.returncode, version.stderr) == (0, "")
    assert re.fullmatch(r"raftkv \d+\.\d+\.\d+\S*\netcd API 3\.6\.0\nPython 3\.\d+\.\d+\S*\n", version.stdout)
    text = run(tmp_path, "--help").stdout
    assert text.startswith("Usage: raftkv")
    assert "--initial-cluster-token" in text
    assert "Print a stopped member's log" in run(tmp_path, "wal", "dump", "--help").stdout


# Ports and data


@pytest.mark.parametrize("flag", ["listen-client-urls", "listen-peer-urls"])
def test_a_port_in_use_is_named_and_no_directory_is_made(tmp_path: Path, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        message = refused(tmp_path, *ANY_PORTS, f"--{flag}", url, "--data-dir", "d")
    assert f"cannot listen on {url}: address already in use: stop what uses it, or choose another --{flag}" in message


def test_an_address_of_another_machine_is_not_said_to_be_in_use(tmp_path: Path) -> None:
    message = refused(tmp_path, *ANY_PORTS, "--listen-peer-urls", "http://192.0.2.1:1", "--data-dir", "d")
    assert "no interface of this machine has that address: choose another --listen-peer-urls" in message
    assert "stop what uses it" not in message.lower()


def test_what_members_are_dialled_with_is_looked_at_before_anything_is_made(tmp_path: Path) -> None:
    pair = ("--peer-client-cert-file", "/none.pem", "--peer-client-key-file", "/none.key")
    urls = ("--listen-peer-urls", "https://127.0.0.1:0", "--initial-advertise-peer-urls", "https://127.0.0.1:1")
    cluster = ("--initial-cluster", "default=https://127.0.0.1:1", "--peer-auto-tls")
    line = refused(tmp_path, *ANY_PORTS[:4], *urls, *cluster, *pair)
    assert "/none.pem" in line


def test_a_locked_directory_names_the_process(tmp_path: Path) -> None:
    directory = tmp_path / "d"
    directory.mkdir()
    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        message = refused(tmp_path, *ANY_PORTS, "--data-dir", "d")
    finally:
        os.close(fd)
    assert f"{directory} is in use by process {os.getpid()}: stop it, or choose another --data-dir" in message


def test_a_second_process_on_the_same_directory_is_refused_and_the_first_lives_on(tmp_path: Path) -> None:
    with started(tmp_path, "--data-dir", "d") as first:
        first.put(b"k", b"v")
        second = run(tmp_path, *ANY_PORTS, "--data-dir", "d")
        assert second.returncode == 1
        assert f"is in use by process {first.process.pid}" in second.stderr
        assert first.get(b"k") == [b"v"]
        stop(first)


@pytest.fixture
def created(tmp_path: Path) -> Path:
    """The directory of a stopped member `default` of a cluster of one, in `d`."""
    with started(tmp_path, "--data-dir", "d") as member:
        member.put(b"k", b"v")
        stop(member)
    return tmp_path


def test_data_of_another_cluster(created: Path) -> None:
    message = refused(created, *ANY_PORTS, "--data-dir", "d", "--initial-cluster-token", "another")
    assert "belongs to cluster cdf818194e3a8c32" in message
    assert "--initial-cluster-token" in message


@contextlib.contextmanager
def three_started(directory: Path) -> Iterator[list[list[str]]]:
    """Three members that run, in `a`, `b` and `c`, and stop when the block ends; the flags of each."""
    ports = free_ports(3)
    cluster = ",".join(f"{name}=http://127.0.0.1:{port}" for name, port in zip("abc", ports, strict=True))
    flags = [
        [
            *("--initial-cluster", cluster, "--name", name, "--data-dir", name),
            *("--initial-advertise-peer-urls", f"http://127.0.0.1:{port}"),
            *("--listen-peer-urls", f"http://127.0.0.1:{port}"),
        ]
        for name, port in zip("abc", ports, strict=True)
    ]
    # One thread each: none of them starts before it has heard of another.
    with ThreadPoolExecutor(3) as pool, contextlib.ExitStack() as stack:
        members = list(pool.map(lambda arguments: stack.enter_context(started(directory, *arguments)), flags))
        yield flags
        for member in members:
            stop(member)


def test_data_of_another_member(tmp_path: Path) -> None:
    with three_started(tmp_path) as (a, b, _):
        pass
    (tmp_path / "a").rename(tmp_path / "old-a")
    message = refused(tmp_path, *b, *ANY_PORTS, "--data-dir", "old-a")
    assert re.search(r"belongs to member [0-9a-f]+, .* --name", message)
    assert "a" in a


def test_data_of_a_cluster_with_other_urls(created: Path) -> None:
    url = "http://127.0.0.1:7"
    flags = ["--initial-cluster", f"default={url}", "--initial-advertise-peer-urls", url]
    message = refused(created, *ANY_PORTS, "--data-dir", "d", *flags)
    assert "belongs to cluster cdf818194e3a8c32" in message
    assert "http://localhost:2380" in message


def test_later_starts_go_by_the_directory_and_not_by_the_flags(tmp_path: Path) -> None:
    ids = re.compile(r"member \S+ \(([0-9a-f]+)\) of cluster ([0-9a-f]+)")
    own = "http://127.0.0.1:7"
    first = ["--initial-cluster", f"default={own}", "--initial-advertise-peer-urls", own]
    more = ["--initial-cluster", f"default={own},b=http://127.0.0.1:8,c=http://127.0.0.1:9"]
    found = []
    for flags in (["--initial-cluster-token", "t", *first], [], [*more, *first[2:]], ["--name", "new", *more]):
        with started(tmp_path, "--data-dir", "d", *flags) as member:
            found.append(ids.search(member.lines[-1]))
            member.put(b"k", b"v")
            assert any("--initial-cluster is ignored" in line for line in member.lines) == (more[1] in flags)
            stop(member)
    assert len({match.groups() for match in found if match}) == 1
    assert all(found)


def test_an_existing_cluster_needs_its_data_or_somebody_to_join(tmp_path: Path) -> None:
    message = refused(tmp_path, *ANY_PORTS, "--data-dir", "d", "--initial-cluster-state", "existing")
    assert "--initial-cluster-state" in message
    assert "names no other member" in message, "a newcomer needs somebody to join"
    assert "raftctl member add" in message
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda d: d.write_text("x"), "not a directory"),
        (lambda d: (d / "member").mkdir(parents=True), "holds etcd's data"),
        (lambda d: (d / "photos").mkdir(parents=True), "holds other files (photos)"),
        (lambda d: d.symlink_to("nowhere"), "--data-dir"),
    ],
    ids=["a file", "etcd's", "foreign", "dangling link"],
)
def test_something_else_is_there(tmp_path: Path, make, words: str) -> None:  # type: ignore[no-untyped-def]
    make(tmp_path / "d")
    assert words in refused(tmp_path, *ANY_PORTS, "--data-dir", "d")


def test_damage_of_acknowledged_records_is_refused(created: Path) -> None:
    [segment] = (created / "d" / "wal").glob("*.wal")
    content = bytearray(segment.read_bytes())
    content[120] ^= 1
    segment.write_bytes(content)
    message = refused(created, *ANY_PORTS, "--data-dir", "d")
    assert segment.name in message


def test_a_log_without_its_store_is_refused(created: Path) -> None:
    shutil.rmtree(created / "d" / "store")
    assert "store is missing" in refused(created, *ANY_PORTS, "--data-dir", "d")


def test_a_log_whose_store_is_empty_is_refused(created: Path) -> None:
    """LMDB makes a new store of an empty file: nobody would be a member in it, and no leader ever be elected."""
    os.truncate(created / "d" / "store" / "data.mdb", 0)
    message = refused(created, *ANY_PORTS, "--data-dir", "d")
    assert f"restore {created}/d/store, or remove the member" in message


@pytest.mark.parametrize("part", ["wal", "store"])
def test_a_file_in_the_place_of_a_directory_is_named(created: Path, part: str) -> None:
    shutil.rmtree(created / "d" / part)
    (created / "d" / part).write_text("x")
    message = refused(created, *ANY_PORTS, "--data-dir", "d")
    assert f"{created}/d/{part}" in message
    assert "not a directory: move the file out of the way" in message


def test_a_store_without_its_log_is_refused(created: Path) -> None:
    shutil.rmtree(created / "d" / "wal")
    assert "the log is missing" in refused(created, *ANY_PORTS, "--data-dir", "d")


def test_a_log_older_than_its_store_is_refused(created: Path) -> None:
    shutil.copytree(created / "d" / "wal", created / "older")
    with started(created, "--data-dir", "d") as member:
        member.put(b"k", b"later")
        stop(member)
    shutil.rmtree(created / "d" / "wal")
    (created / "older").rename(created / "d" / "wal")
    assert re.search(r"applied, but the log ends at \d+", refused(created, *ANY_PORTS, "--data-dir", "d"))


def in_mount_namespace(directory: Path, options: str, script: str) -> "subprocess.CompletedProcess[str]":
    """Run a shell script in a private mount namespace with a tmpfs at `directory`; skip where that is not allowed."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare(1): cannot make a small or read-only file system")
    mount = f"mount -t tmpfs -o {options} tmpfs {shlex.quote(str(directory))}"
    for flags in (["-m"], ["-Urm"]):
        if subprocess.run(["unshare", *flags, "sh", "-c", mount], capture_output=True, check=False).returncode == 0:
            return subprocess.run(
                ["unshare", *flags, "sh", "-c", f"{mount} && {script}"],
                cwd=directory.parent,
                env=environment(),
                capture_output=True,
                text=True,
                timeout=BOUND_SECONDS,
                check=False,
            )
    pytest.skip("mounting a tmpfs in a namespace is not allowed here")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("size=8m", os.strerror(errno.ENOSPC).lower()),
        ("size=4k", os.strerror(errno.ENOSPC).lower()),
        ("ro", os.strerror(errno.EROFS).lower()),
    ],
    ids=["small disk", "tiny disk", "read-only disk"],
)
@pytest.mark.parametrize("data_dir", ["disk", "disk/new"])
def test_a_disk_that_is_full_or_read_only_is_left_as_it_was(
    tmp_path: Path, options: str, words: str, data_dir: str
) -> None:
    (tmp_path / "disk").mkdir()
    command = shlex.join([*COMMAND, *ANY_PORTS, "--data-dir", data_dir])
    result = in_mount_namespace(tmp_path / "disk", options, f"{command}; echo status $?; find disk -mindepth 1")
    assert result.stdout == "status 1\n", result.stdout + result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("raftkv: ")
    assert words in last.lower()
    assert f"{tmp_path / 'disk'}" in last
    assert last.endswith("or choose another --data-dir")
    assert "Errno" not in last
    assert "Traceback" not in result.stderr


def test_a_first_start_on_a_disk_without_a_free_byte_is_refused(tmp_path: Path) -> None:
    """LMDB maps its lock, and who writes to a mapped page for which there is no space is killed."""
    (tmp_path / "disk").mkdir()
    command = shlex.join([*COMMAND, *ANY_PORTS, "--data-dir", "disk/new"])
    fill = "head -c 8192 /dev/zero > disk/full"
    result = in_mount_namespace(tmp_path / "disk", "size=8k", f"{fill}; {command}; echo status $?; ls disk")
    assert result.stdout == "status 1\nfull\n", result.stdout + result.stderr
    assert f"cannot use {tmp_path}/disk/new: no space left on device: free some space" in result.stderr


def test_an_even_cluster_starts_with_a_warning(tmp_path: Path) -> None:
    [port] = free_ports(1)
    flags = ["--initial-cluster", f"default=http://localhost:2380,b=http://127.0.0.1:{port}"]
    b = ["--name", "b", "--initial-advertise-peer-urls", f"http://127.0.0.1:{port}"]
    # Alone it would wait for the other before its first start, but the warning comes before that.
    process = subprocess.Popen(
        [*COMMAND, *ANY_PORTS, *flags, *b], cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    _, rest = process.communicate(timeout=BOUND_SECONDS)
    assert " warn " in line, line + rest
    assert "even number" in line
    # It gives up waiting and leaves nothing behind.
    assert process.returncode in (0, -signal.SIGTERM), rest
    assert list(tmp_path.iterdir()) == []


# Running and stopping


def test_it_says_where_it_listens_and_keeps_its_data(tmp_path: Path) -> None:
    with started(tmp_path, "--name", "n1") as member:
        assert member.data == str(tmp_path / "n1.raftkv")
        assert (tmp_path / "n1.raftkv").stat().st_mode & 0o777 == 0o700
        member.put(b"k", b"v")
        assert "stopped" in stop(member)
    with started(tmp_path, "--name", "n1") as member:
        assert member.get(b"k") == [b"v"]
        stop(member, signal.SIGINT)


def test_json_lines(tmp_path: Path) -> None:
    with started(tmp_path, "--log-format", "json") as member:
        fields = json.loads(member.lines[-1])
        assert fields["level"] == "info"
        assert set(fields) == {"level", "ts", "caller", "msg"}
        stop(member)


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with started(tmp_path) as member:
        # Both wait for it when it wakes up.
        for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
            member.process.send_signal(number)
        status, rest = member.wait()
        assert status == 1
        assert "stopped" not in rest


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="no prlimit: cannot make writes of another process fail")
def test_a_failing_disk_ends_it_with_one_line_and_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    with started(tmp_path) as member:
        member.put(b"k", b"acknowledged")
        resource.prlimit(member.process.pid, resource.RLIMIT_FSIZE, (0, 0))
        with pytest.raises(grpc.RpcError):
            member.put(b"k", b"never acknowledged")
        status, rest = member.wait()
        assert status == 1
        assert rest.splitlines()[-1].startswith("raftkv: stopped: ")
        assert os.strerror(errno.EFBIG).lower() in rest.splitlines()[-1].lower()
    with started(tmp_path) as member:
        assert member.get(b"k") == [b"acknowledged"]
        stop(member)


def test_the_log_of_a_stopped_member_can_be_printed(created: Path) -> None:
    result = run(created, "wal", "dump", "d")
    assert result.returncode == 0
    assert "entry term=1 index=1" in result.stdout
    assert run(created, "wal", "dump", "d/wal").stdout == result.stdout
