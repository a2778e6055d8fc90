"""raftctl's and etcdctl's auth, user and role commands, byte for byte, against etcd and against raftkv."""

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cli.raftctl import PATIENT, Result, etcdctl
from tests.cli.servers import serve
from tests.cli.test_against_etcdctl import normal
from tests.cli.zygote import Zygote
from tests.support.processes import free_ports

pytestmark = pytest.mark.skipif(shutil.which("etcdctl") is None, reason="etcdctl is not installed")


class Case(NamedTuple):
    line: str
    stdin: bytes = b""


ROOT = "--user root:s3cret-r"
ANN = "--user ann:s3cret-a"
CASES = [
    *(Case(line) for line in ("auth enable", "auth disable", "auth enable x", "auth disable x")),
    *(Case(f"user {name}") for name in ("add", "delete", "get", "passwd", "list x", "add a b", "get a b")),
    *(Case(f"user {name}-role ann") for name in ("grant", "revoke")),
    *(Case(f"role {name}") for name in ("add", "delete", "get", "list x", "grant-permission r", "revoke-permission r")),
    Case("role grant-permission r some key"),
    Case("user add root:s3cret-r"),
    Case("user grant-role root root"),
    Case("user grant-role root none"),
    Case("user grant-role none root"),
    Case("user add ann --new-user-password s3cret-a -w json"),
    Case("user add bob --interactive=false -w fields", b"s3cret-b\n"),
    Case("user add x:y --no-password"),
    Case("user add :x"),
    Case("user add z:"),
    Case("user delete x:y"),
    Case("user delete x:y"),
    Case("user list"),
    Case("user list -w json"),
    *(Case(f"user list -w {form}") for form in ("fields", "table")),
    Case("role add r"),
    Case("role add r"),
    Case("role add r2 -w json"),
    Case("role list"),
    *(Case(f"role list -w {form}") for form in ("fields", "json", "table")),
    Case("role grant-permission r read foo"),
    Case("role grant-permission r WRITE foo zoo"),
    Case("role grant-permission r readwrite p --prefix"),
    Case("role grant-permission r readwrite '' --prefix -w fields"),
    Case("role grant-permission r read x --from-key -w json"),
    Case("role grant-permission r read '' --from-key"),
    Case("role grant-permission r read k --from-key --prefix"),
    Case("role grant-permission r read k l --prefix"),
    Case("role grant-permission r read k l --from-key"),
    Case("role grant-permission none read k"),
    *(Case(f"role get r -w {form}") for form in ("simple", "fields", "json", "table")),
    Case("role get none"),
    Case("role revoke-permission r foo zoo"),
    Case("role revoke-permission r foo"),
    Case("role revoke-permission r foo"),
    Case("role revoke-permission r x --from-key -w fields"),
    Case("role revoke-permission r '' --prefix"),
    Case("role revoke-permission r k l --prefix"),
    Case("role revoke-permission r p --prefix -w json"),
    Case("role grant-permission r readwrite p --prefix"),
    Case("user grant-role ann r"),
    Case("user grant-role ann r2"),
    *(Case(f"user get ann -w {form}") for form in ("simple", "json", "fields", "table")),
    Case("user get ann --detail"),
    Case("user get none"),
    Case("user passwd bob --interactive=false", b"s3cret-c\n"),
    Case("user passwd none --interactive=false", b"s3cret-c\n"),
    Case("auth enable"),
    Case("get p"),
    Case(f"{ROOT} put p 1"),
    Case(f"{ROOT} put q 1"),
    Case("--user root --password s3cret-r get q"),
    Case("--user root --password s3cret-wrong get q"),
    Case(f"{ANN} get p"),
    Case(f"{ANN} get q"),
    Case(f"{ANN} put pp 2"),
    Case(f"{ANN} put q 2"),
    Case(f"{ANN} del p"),
    Case(f"{ANN} del p --prefix"),
    Case(f"{ANN} get '' --prefix"),
    Case("--user bob:s3cret-b get p"),
    Case("--user bob:s3cret-c get p"),
    Case("--user none:s3cret-c get p"),
    Case("--user bob: get p"),
    Case("--user : get p"),
    Case(f"{ANN} user get ann"),
    Case(f"{ANN} user get bob"),
    Case(f"{ANN} user list"),
    Case(f"{ANN} role get r"),
    Case(f"{ANN} role list"),
    Case(f"{ANN} role add mine"),
    Case(f"{ANN} auth disable"),
    Case(f"{ROOT} user delete root"),
    Case(f"{ROOT} user revoke-role root root"),
    Case(f"{ROOT} user revoke-role ann none"),
    Case(f"{ROOT} user revoke-role ann r2"),
    Case(f"{ROOT} user revoke-role ann r -w fields"),
    Case(f"{ANN} get p"),
    Case(f"{ROOT} role delete r"),
    Case(f"{ROOT} role delete none"),
    Case(f"{ROOT} user delete ann -w json"),
    Case(f"{ANN} get p"),
    Case(f"{ROOT} auth disable"),
    Case("get p"),
    Case("user revoke-role root root"),
    Case("role list"),
    # The user root is made root by that.
    Case("auth enable"),
    Case(f"{ROOT} role list"),
    Case(f"{ROOT} user get root"),
]
Said = list[Result]


def _run_all(tool: Callable[..., Result], kind: str, directory: Path, ports: tuple[int, int]) -> Said:
    with serve(kind, directory, ports) as live:
        return [tool("--endpoints", live, *PATIENT, *shlex.split(case.line), stdin=case.stdin) for case in CASES]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Said, Said]]:
    """What etcdctl and raftctl said to every case of a kind of server; run once."""
    done: dict[str, tuple[Said, Said]] = {}

    def get(kind: str) -> tuple[Said, Said]:
        if kind not in done:
            ports = free_ports(2)
            directory = tmp_path_factory.mktemp(kind)
            with Zygote() as zygote:
                done[kind] = (
                    _run_all(etcdctl, kind, directory / "etcdctl", (ports[0], ports[1])),
                    _run_all(zygote.raftctl, kind, directory / "raftctl", (ports[0], ports[1])),
                )
        return done[kind]

    return get


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: CASES[number].line)
@pytest.mark.parametrize("kind", [pytest.param("etcd", marks=pytest.mark.soak), "raftkv"])
def test_says_what_etcdctl_says(kind: str, number: int, runs: Callable[[str], tuple[Said, Said]]) -> None:
    theirs, ours = (said[number] for said in runs(kind))
    assert "Traceback" not in ours.stderr
    assert normal(ours.stdout.decode()) == normal(theirs.stdout.decode())
    assert normal(ours.stderr) == normal(theirs.stderr)
    assert ours.status == theirs.status


def test_a_password_is_asked_for_and_not_shown(tmp_path: Path) -> None:
    """At a terminal: raftctl asks for what --user leaves out, and twice for a new one."""
    import os
    import pty
    import sys

    from tests.cli.raftctl import environment

    def at_terminal(*words: str, typed: str) -> str:
        process, terminal = pty.fork()
        if not process:
            os.execvpe(sys.executable, [sys.executable, "-m", "cli.raftctl", *words], environment())
        shown = b""
        for line in typed.splitlines():
            while not shown.endswith(b": "):
                shown += os.read(terminal, 1)
            shown += b"\n"
            os.write(terminal, line.encode() + b"\n")
        while True:
            try:
                shown += os.read(terminal, 1000)
            except OSError:
                break
        os.waitpid(process, 0)
        os.close(terminal)
        return shown.decode()

    with serve("raftkv", tmp_path) as live:
        assert "User root created" in at_terminal("--endpoints", live, "user", "add", "root", typed="hush\nhush\n")
        different = at_terminal("--endpoints", live, "user", "add", "ann", typed="hush\nhash\n")
        assert "given passwords are different." in different
        assert "Authentication Enabled" in at_terminal("--endpoints", live, "auth", "enable", typed="")
        shown = at_terminal("--endpoints", live, "--user", "root", "role", "list", typed="hush\n")
        assert "root" in shown
        assert "hush" not in shown + different
