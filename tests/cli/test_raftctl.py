"""raftctl as a real process: what etcdctl has no word on, and how it starts and stops."""

import importlib
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cli.raftctl.main import PLACES
from cli.raftctl.main import raftctl as command_line
from raftkv import ETCD_API_VERSION, __version__
from raftkv.client import Client
from tests.cli.raftctl import BOUND_SECONDS, ROOT, environment
from tests.cli.raftctl import raftctl as run_from_scratch
from tests.cli.servers import KINDS, serve, serve_tls
from tests.cli.zygote import raftctl as run
from tests.support.certificates import Authority
from tests.unit.client.faulty import answer, blackhole, close, faulty, refusing, silence


def commands(group: click.Group = command_line, path: str = "raftctl") -> Iterator[tuple[str, click.Command]]:
    yield path, group
    # A group may want something of its own before the command.
    for argument in (one for one in group.params if isinstance(one, click.Argument)):
        path = f"{path} {argument.metavar}"
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        assert command.name == name
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


COMMANDS = dict(commands())
GIVEN = {"TERM": "dumb", "COLUMNS": "100"}


@pytest.fixture(scope="module", params=KINDS)
def live(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve(request.param, tmp_path_factory.mktemp("server")) as endpoint:
        yield endpoint


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_explains_itself_with_an_example(path: str) -> None:
    result = run(*path.split()[1:], "--help", **GIVEN)
    text = result.stdout.decode()
    assert result.status == 0
    assert text.startswith(f"Usage: {path} ")
    example = re.search(r"Examples?:\n((?: {4}.+\n)+)", text)
    assert example is not None, text
    # On a group, an example of one of its commands will do.
    assert path in example[1].replace("\n", " ")
    assert "--endpoints" in text


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_is_in_the_documentation(path: str) -> None:
    document = (ROOT / "docs" / "cli.md").read_text()
    assert f"`{path}" in document
    options = (option for option in COMMANDS[path].params if isinstance(option, click.Option))
    for name in (name for option in options for name in option.opts if name.startswith("--")):
        assert f"`{name}" in document, name


def test_help_and_version_start_without_grpc_and_asyncio() -> None:
    """The start must stay below 0.15 s; what would cost it is an import, that of commands nobody named too."""
    script = (
        "import sys; from cli.raftctl.main import main; sys.argv = ['raftctl', sys.argv[1]]\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(*sorted(sys.modules), file=sys.stderr)"
    )
    for argument in ("version", "--help"):
        done = subprocess.run(
            [sys.executable, "-c", script, argument],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=BOUND_SECONDS,
            check=True,
        )
        loaded = set(done.stderr.split())
        assert not loaded & {f"cli.raftctl.{place.module}" for place in PLACES.values()}
        assert not loaded & {"grpc", "asyncio", "google.protobuf.message", "json", "logging"}
        assert not loaded & {"raftkv.client", "raftkv.pb.rpc_pb2"}


def test_a_command_that_only_asks_imports_no_locks_leases_and_watches() -> None:
    script = "import sys; from raftkv.client import Client; Client().close(); print(*sorted(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=True
    )
    loaded = {name.removeprefix("raftkv.client.") for name in found.stdout.split() if name.startswith("raftkv.client.")}
    assert loaded == {"aio", "errors", "failover", "login", "requests", "sync"}


def test_the_list_of_commands_says_what_each_says_of_itself() -> None:
    for name, place in PLACES.items():
        command = getattr(importlib.import_module(f"cli.raftctl.{place.module}"), place.name)
        assert command.name == name
        assert not command.hidden
        for limit in (40, 60, 80, 200):
            assert click.Command(name, help=place.summary).get_short_help_str(limit) == command.get_short_help_str(
                limit
            )


def test_version() -> None:
    result = run_from_scratch("version")
    assert result.stdout.decode() == f"raftctl version: {__version__}\nAPI version: {ETCD_API_VERSION[:3]}\n"


def test_alone_it_shows_its_help() -> None:
    for arguments in ((), ("member",), ("endpoint",)):
        result = run_from_scratch(*arguments)
        assert (result.status, result.stderr) == (0, "")
        assert b"Commands:" in result.stdout


def test_a_command_may_be_cut_as_long_as_it_is_the_only_one() -> None:
    """In etcd's own documentation it is `etcdctl compact`."""
    assert run("vers").stdout == run("version").stdout
    assert run("help", "compact").stdout == run("compaction", "--help").stdout
    assert run("help", "snap", "sa").stdout == run("snapshot", "save", "--help").stdout
    assert run("member", "r").stderr.startswith("Error: member ID is not provided")
    assert run("snapshot", "s").status == run("e").status == 1


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: str) -> None:
    result = run("completion", shell)
    assert result.status == 0
    assert b"_RAFTCTL_COMPLETE" in result.stdout


def test_completes_commands_and_flags() -> None:
    def complete(words: str, number: int) -> list[str]:
        told = {"_RAFTCTL_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(number)}
        return run(**told).stdout.decode().split()

    assert complete("raftctl end", 1) == ["plain,endpoint"]
    assert complete("raftctl endpoint st", 2) == ["plain,status"]
    assert complete("raftctl get --pre", 2) == ["plain,--prefix"]


def test_a_flag_beats_its_variable_which_beats_the_default(live: str) -> None:
    with refusing() as dead:
        assert run_from_scratch("put", "env", "1", RAFTCTL_ENDPOINTS=live).status == 0
        assert run("get", "env", RAFTCTL_ENDPOINTS=f"{dead},http://{live}", RAFTCTL_HEX="true").stdout == (
            b"\\x65\\x6e\\x76\n\\x31\n"
        )
        variables = {"RAFTCTL_ENDPOINTS": dead, "RAFTCTL_WRITE_OUT": "json", "RAFTCTL_HEX": "1"}
        expected = b"env\n1\n"
        assert run("--endpoints", live, "-w", "simple", "--hex=false", "get", "env", **variables).stdout == expected
        assert run("get", "env", "--endpoints", live, "-w", "simple", "--hex=false", **variables).stdout == expected
        ignored = {"ETCDCTL_ENDPOINTS": dead, "ETCDCTL_WRITE_OUT": "json", "RAFTCTL_HEX": ""}
        assert run("get", "env", "--endpoints", live, **ignored).stdout == expected


@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [
        ("COMMAND_TIMEOUT", "5", 'time: missing unit in duration "5"'),
        ("HEX", "maybe", 'strconv.ParseBool: parsing "maybe": invalid syntax'),
    ],
)
def test_a_variable_that_makes_no_sense_is_refused(variable: str, value: str, why: str) -> None:
    result = run("get", "a", **{f"RAFTCTL_{variable}": value})
    assert (result.status, result.stderr) == (1, f'Error: invalid value "{value}" for RAFTCTL_{variable}: {why}\n')


@pytest.mark.parametrize(
    ("arguments", "status", "error"),
    [
        (["--cacert", "ca.pem"], 128, "--cacert: cannot read ca.pem"),
        (["--cert", "c.pem", "--key", "k.pem"], 128, "--cert: cannot read c.pem"),
        (["--endpoints", "unixs://a"], 128, "endpoint unixs://a: TLS on Unix sockets is not supported, use https://"),
        (["--endpoints", "a"], 128, "endpoint a has no port: write host:port or http://host:port"),
        (["--discovery-srv", "x"], 128, "--discovery-srv is not supported: name the members with --endpoints"),
        (["--endpoints", ","], 2, "etcdclient: no available endpoints"),
    ],
)
def test_what_is_not_supported_is_refused(arguments: list[str], status: int, error: str) -> None:
    for line in ([*arguments, "get", "a"], ["get", "a", *arguments]):
        result = run(*line)
        assert (result.status, result.stdout, result.stderr) == (status, b"", f"Error: {error}\n")


def test_a_wrong_flag_points_at_the_help() -> None:
    result = run("member", "list", "--nosuch")
    assert result.stderr == "Error: unknown flag: --nosuch\nRun 'raftctl member list --help' for usage.\n"
    assert run("member", "nosuch").status == 1
    assert run("completion", "powershell").status == 1


def test_no_endpoint_can_be_reached() -> None:
    with refusing() as one, blackhole() as two:
        result = run("--endpoints", f"{one},{two}", "--dial-timeout", "300ms", "put", "a", "1")
    assert (result.status, result.stderr) == (
        1,
        f"could not connect to {one}, {two}\n{one}: connection refused\n{two}: no answer\n"
        "Error: context deadline exceeded\n",
    )


def test_why_tls_does_not_come_about_is_said_and_nothing_else(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path / "ca"), Authority(tmp_path / "other")
    certificate, key = map(str, authority.issue("me"))
    theirs, their_key = map(str, stranger.issue("them"))
    files = ("--cacert", str(authority.file), "--cert", certificate, "--key", key)
    with serve_tls(tmp_path / "member", authority) as plain, refusing() as closed:
        endpoint = f"https://{plain}"
        cases = {
            f"{plain}: it hangs up; if it speaks TLS, write https://": [plain],
            f"{endpoint}: its certificate is not trusted: ": [endpoint, "--cacert", str(stranger.file)],
            f"{endpoint}: its certificate is not trusted: Hostname": [endpoint, *files, "--tls-server-name", "other"],
            f"{endpoint}: it hangs up: it may not take whoever has": [endpoint, *files[:2]],
            f"{endpoint}: it hangs up: it may not take --cert": [
                endpoint,
                *files[:2],
                "--cert",
                theirs,
                "--key",
                their_key,
            ],
            f"{endpoint}: cannot use the TLS files": [endpoint, *files[:5], their_key],
            f"https://{closed}: connection refused": [f"https://{closed}", *files],
        }
        for reason, arguments in cases.items():
            done = run_from_scratch("--dial-timeout", "300ms", "--endpoints", *arguments, "get", "a")
            first, why, last = done.stderr.splitlines()
            assert first == f"could not connect to {arguments[0]}"
            assert why.startswith(reason)
            assert (done.status, last) == (1, "Error: context deadline exceeded")


def test_a_snapshot_that_cannot_be_written_is_refused_in_a_line(tmp_path: Path) -> None:
    """Nor can what was not written be removed."""
    (tmp_path / "file").touch()
    done = run("snapshot", "save", str(tmp_path / "file" / "s.db"))
    assert done.stderr == f"Error: could not write {tmp_path}/file/s.db.part: not a directory\n"
    assert done.status == 5


def test_an_unknown_outcome_is_said() -> None:
    note = "the request was sent and not answered: it may have taken effect; it was not repeated\n"
    with faulty(close) as server:
        result = run("--endpoints", server.endpoint, "--dial-timeout", "30s", "put", "a", "1")
        assert result.status == 1
        assert result.stderr.startswith(f"{note}Error: ")
        assert len(server.requests) == 1
    with faulty(silence) as server:
        result = run("--endpoints", server.endpoint, "--command-timeout", "3s", "del", "a")
        assert (result.status, result.stderr) == (1, f"{note}Error: context deadline exceeded\n")
    with faulty(answer(14, "etcdserver: no leader")) as server:
        result = run("--endpoints", server.endpoint, "--command-timeout", "5s", "put", "a", "1")
        assert (result.status, result.stderr) == (1, "Error: etcdserver: no leader\n")
        assert len(server.requests) > 1


def test_debug_tells_settings_but_no_secrets(live: str) -> None:
    result = run("--debug", "--endpoints", live, "--user", "root:s3cret", "--password", "s3cret", "get", "nothing")
    assert result.status == 0
    assert f"RAFTCTL_ENDPOINTS={live}\n" in result.stderr
    assert "RAFTCTL_USER=***\n" in result.stderr
    assert "s3cret" not in result.stderr
    failed = run("--debug", "--endpoints", live, "get", "a", "--rev", "99999")
    assert "Traceback" in failed.stderr
    assert failed.stderr.endswith("Error: etcdserver: mvcc: required revision is a future revision\n")


def test_counts(live: str) -> None:
    with Client(live) as client:
        for number in range(3):
            client.put(f"count/{number}", "v")
    words = ["--endpoints", live, "get", "count/", "--prefix", "--count-only"]
    assert run(*words).stdout == b"3\n"
    assert run(*words, "-w", "fields").stdout.endswith(b'"More" : false\n"Count" : 3\n')
    refused = run(*words, "-w", "json")
    assert (refused.status, refused.stderr) == (128, "Error: --count-only is only for `--write-out=fields`\n")
    both = run(*words, "--keys-only")
    assert both.status == 128


def test_a_form_that_cannot_be_printed_is_refused_before_anything_is_written(live: str) -> None:
    result = run("--endpoints", live, "put", "unwritten", "1", "-w", "table")
    assert (result.status, result.stderr) == (4, "Error: table not supported as output format\n")
    assert run("--endpoints", live, "get", "unwritten").stdout == b""


def test_txn_compares_leases_and_refuses_unknown_operators(live: str) -> None:
    held = run("--endpoints", live, "txn", stdin=b'lease("no") = "0"\n\nput \'it is\' "a\\n"\n\n\n')
    # etcd compares the lease of a key that is not there with 0, and finds it equal.
    assert held.stdout == b"SUCCESS\n\nOK\n"
    assert run("--endpoints", live, "get", "it is").stdout == b"it is\na\n\n"
    unknown = run("--endpoints", live, "txn", stdin=b'mod("k") == "0"\n\n\n\n')
    assert (unknown.status, unknown.stderr) == (
        3,
        'Error: malformed comparison: mod("k") == "0" (unknown operator ==)\n',
    )


def test_txn_reads_a_file(live: str, tmp_path: Path) -> None:
    file = tmp_path / "transaction"
    file.write_bytes(b"\nput file 1\n\n\n")
    with file.open("rb") as source:
        done = subprocess.run(
            [sys.executable, "-m", "cli.raftctl", "--endpoints", live, "txn"],
            stdin=source,
            capture_output=True,
            env=environment(),
            timeout=BOUND_SECONDS,
            check=True,
        )
    assert done.stdout == b"SUCCESS\n\nOK\n"


def start(*arguments: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "cli.raftctl", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )


def test_a_large_range_streams_at_one_revision(live: str) -> None:
    """The first lines come while the rest is still on the server; what is written meanwhile is not seen."""
    value = b"v" * 50_000
    with Client(live, timeout=30.0) as client, client_keys(client, value) as count:
        process = start("--endpoints", live, "get", "stream/", "--prefix")
        assert process.stdout is not None
        first = process.stdout.readline()
        assert process.poll() is None, "the whole range fits nowhere: the process must be waiting for its reader"
        assert client.delete("stream/", prefix=True).deleted == count
        lines = [first, *process.stdout.read().splitlines(keepends=True)]
        assert process.wait(BOUND_SECONDS) == 0
        process.communicate()
    assert lines[0::2] == [b"stream/%03d\n" % number for number in range(count)]
    assert set(lines[1::2]) == {value + b"\n"}


def test_streams_no_more_than_the_limit(live: str) -> None:
    with Client(live, timeout=30.0) as client, client_keys(client, b"v") as count:
        words = ["--endpoints", live, "get", "stream/", "--prefix", "--keys-only"]
        assert run(*words).stdout.count(b"stream/") == count
        assert run(*words, "--limit", "100").stdout.count(b"stream/") == 100
        whole = run(*words, "-w", "fields").stdout
        assert whole.endswith(b'"More" : false\n"Count" : %d\n' % count)


class client_keys:
    """200 keys under stream/, gone afterwards."""

    def __init__(self, client: Client, value: bytes) -> None:
        self._client, self._value = client, value

    def __enter__(self) -> int:
        for number in range(200):
            self._client.put(f"stream/{number:03}", self._value)
        return 200

    def __exit__(self, *_: object) -> None:
        self._client.delete("stream/", prefix=True)


def test_a_reader_that_has_enough_ends_it_quietly(live: str) -> None:
    with Client(live, timeout=30.0) as client, client_keys(client, b"v" * 50_000):
        process = start("--endpoints", live, "get", "stream/", "--prefix")
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        process.stdout = None
        _, errors = process.communicate(timeout=BOUND_SECONDS)
    assert (process.returncode, errors) == (141, b"")


def test_an_interrupt_ends_it(live: str) -> None:
    process = start("--endpoints", live, "txn", "-i")
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == b"compares:\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=BOUND_SECONDS)
    assert process.returncode == 130
    assert b"Traceback" not in errors


def test_txn_asks_for_each_part_when_its_turn_comes(live: str) -> None:
    process = start("--endpoints", live, "txn", "--interactive")
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        for prompt in (b"compares:\n", b"success requests (get, put, del):\n", b"failure requests (get, put, del):\n"):
            ready, _, _ = select.select([process.stdout], [], [], BOUND_SECONDS)
            assert ready, "no prompt"
            assert os.read(process.stdout.fileno(), 100) == prompt
            process.stdin.write(b"\n")
            process.stdin.flush()
        assert process.communicate(timeout=BOUND_SECONDS)[0] == b"SUCCESS\n"
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("words", [[], ["put"], ["snapshot"], ["snapshot", "save"]])
def test_help_of_a_command_is_what_its_flag_prints(words: list[str]) -> None:
    asked, flag = run("help", *words), run(*words, "--help")
    assert (asked.status, asked.stdout, asked.stderr) == (0, flag.stdout, "")
    assert " ".join(["raftctl", *words]).encode() in asked.stdout


def test_help_of_what_is_no_command_is_that_of_all_as_in_etcdctl() -> None:
    done = run("help", "nope")
    assert (done.status, done.stdout) == (0, run("help").stdout)
    assert done.stderr == "Unknown help topic [`nope`]\n"
    assert run("help", "member", "nope").stdout == run("member", "--help").stdout
