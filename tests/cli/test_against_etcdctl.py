"""raftctl and etcdctl run the same commands, one after the other, against servers that cannot be told apart.

What they print and how they exit must be equal, byte for byte. Three things are left out: etcdctl's log lines, how
long something took, and the size of the database file.
"""

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cli.raftctl import PATIENT, Result, etcdctl
from tests.cli.servers import KINDS, serve
from tests.cli.zygote import Zygote
from tests.support.processes import free_ports
from tests.unit.client.faulty import refusing

pytestmark = pytest.mark.skipif(shutil.which("etcdctl") is None, reason="etcdctl is not installed")


class Case(NamedTuple):
    """A command line; `{live}` and `{dead}` are endpoints.

    `etcd_only`: not for the short run against raftkv. `first_error`: only the first line that says Error and the exit
    status are compared: with wrong flags etcdctl prints all its help, in a form of its own.
    """

    line: str
    stdin: bytes = b""
    etcd_only: bool = True
    first_error: bool = False


def both(line: str, stdin: bytes = b"") -> Case:
    return Case(line, stdin, etcd_only=False)


def wrong(line: str) -> Case:
    return Case(line, first_error=True)


BINARY = b'q"\\\x01\xff\xc3\xa9\xe2\x80\xa8\x7f\n\t'
EVERY_COMPARE = b"""ver("k") > "0"
version("k") < "10"
c("k") > "0"
create("k") != "0"
m("k") > "0"
mod("k") > "\\x31"
value("k") > `a`
val("k") < "zz"

get k
get k --keys-only

get nothing

"""
CASES = [
    both("put a 1"),
    both("put a 2 --prev-kv"),
    both("put a 3 --prev-kv -w json"),
    both("put a 4 --prev-kv -w fields"),
    Case("put a 5 --prev-kv -w protobuf"),
    both("put a 6 --prev-kv --hex"),
    both("put from-stdin", b"text\n"),
    both("put binary", BINARY),
    Case("put empty ''"),
    Case("put more than two words"),
    Case("put -- dash -x"),
    Case("put dash -- --x"),
    Case("put --ignore-value a"),
    Case("put --ignore-lease a 7"),
    Case("put --prev-kv=true a 7"),
    Case("put --prev-kv=false a 8"),
    both("put"),
    both("put key"),
    both("put --ignore-value a b"),
    Case("put --lease zz a b"),
    Case("put --lease 10000000000000000 a b"),
    Case("put --lease 12 a b"),
    both("put '' x"),
    Case("put --ignore-value nothing"),
    Case("put a 1 -w nothing"),
    both("get a"),
    both("get a -w json"),
    both("get a -w fields"),
    both("get a -w table"),
    Case("get a -w nothing"),
    Case("get a -w protobuf"),
    Case("-w json get a"),
    Case("get a -w=json"),
    Case("get a -wjson"),
    Case("get a --write-out=json"),
    both("get a --hex"),
    Case("get a --hex -w json"),
    Case("get a --hex -w fields"),
    Case("--hex=true get a"),
    both("get binary"),
    Case("get binary -w fields"),
    Case("get binary -w json"),
    Case("get binary --hex --print-value-only"),
    both("get nothing"),
    Case("get nothing -w json"),
    Case("get nothing -w fields"),
    both("get '' --prefix"),
    Case("get '' --from-key"),
    Case("get ''"),
    both("get a m"),
    Case("get a m extra"),
    both("get d --prefix --keys-only"),
    Case("get d --prefix --keys-only -w json"),
    Case("get d --prefix --keys-only --hex"),
    Case("get d --from-key --limit 2"),
    Case("get d --from-key --limit=2 -w json"),
    Case("get '' --prefix --limit -1 --keys-only"),
    Case("get a --print-value-only"),
    Case("get a --print-value-only -w json"),
    Case("get a --print-value-only -w nothing"),
    both("get a --rev 3"),
    Case("get a --rev -3"),
    Case("get a --rev 9999"),
    Case("get '' --prefix --rev 4 -w json"),
    Case("get a --consistency s"),
    Case("get a --consistency x"),
    *(Case(f"get '' --prefix --keys-only --sort-by {by}") for by in ("CREATE", "modify", "VALUE", "Version", "KEY")),
    both("get '' --prefix --keys-only --order DESCEND"),
    Case("get '' --prefix --keys-only --order ascend"),
    Case("get '' --prefix --sort-by MODIFY --order DESCEND --limit 2 -w json"),
    Case("get a --order x"),
    Case("get a --order NONE"),
    Case("get a --sort-by x"),
    both("get"),
    Case("get a b --prefix"),
    Case("get a b --from-key"),
    Case("get a --prefix --from-key"),
    wrong("get a --nosuch"),
    wrong("get a -x"),
    wrong("get a --limit x"),
    wrong("get a --limit 99999999999999999999"),
    wrong("get a --prefix=maybe"),
    wrong("get a --rev"),
    wrong("get a -w"),
    wrong("get a --command-timeout x"),
    wrong("get a --command-timeout 5"),
    wrong("get a --dial-timeout 5y"),
    wrong("--nosuch"),
    Case("get a --cacert ''"),
    Case("--endpoints= get a --endpoints {live}"),
    both("del a --prev-kv -w json"),
    both("del nothing"),
    Case("del nothing -w json"),
    Case("del nothing -w fields"),
    both("del dash --prev-kv"),
    Case("put x1 1"),
    Case("put x2 ''"),
    Case("del x1 --prev-kv -w fields"),
    Case("del x2 --prev-kv -w protobuf"),
    Case("put x1 1"),
    Case("put x2 2"),
    Case("del x --prefix --prev-kv --hex"),
    both("del"),
    Case("del a b c"),
    Case("del a b --prefix"),
    Case("del a --prefix --from-key"),
    Case("del ''"),
    both("txn", b'mod("k") = "0"\n\nput k v\n\nget k\n\n'),
    both("txn", b'mod("k") = "0"\n\nput k v\n\nget k\n\n'),
    Case("txn -i", b'mod("k") = "0"\n\n\nget k --keys-only\ndel k --prev-kv\n\n'),
    both("txn -w json", b'\nput k 1\nput j it\nput l "a b\\x41\\u00e9\\n" --prev-kv\nget l\n\n\n'),
    both("txn -w fields", b"\nput k 1 --prev-kv\nget j --prefix\ndel nothing\ndel l --prev-kv\n\n\n"),
    Case("txn -w protobuf", b"\nput k 1 --prev-kv\nget j --prefix\n\n\n"),
    Case("txn -w table", b"\nget k\n\n\n"),
    Case("txn", b"\n\n\n"),
    Case("txn -w json", b"\n\n\n"),
    both("txn -w json", EVERY_COMPARE),
    Case("txn", b'mod( "k") != "0" trailing\n\n\n\n'),
    Case("txn", b'\nput k a"b"c\nget k\n\n\n'),
    Case("txn", b'\nput k "unterminated\nget k --consistency s\n\n\n'),
    Case("txn", b"\nput k -- -v\nget k\nget e --prefix --limit 1\n\n\n"),
    Case("txn", b"\nput k 1 2 3\n\n\n"),
    Case("txn", b"\nput k 1\nput k 2\n\n\n"),
    Case("txn", b"\nput --ignore-value nothing\n\n\n"),
    both("txn", b""),
    Case("txn", b"\n"),
    Case("txn", b"\nget k\n\n"),
    Case("txn", b"\nget k\n\nget k\n"),
    *(
        Case("txn", line + b"\n\n\n\n")
        for line in (
            b'mod(k) = "0"',
            b'mod("k") = 0',
            b'mod("k")!="0"',
            b'mod("k") ="0"',
            b'mod("k" ) = "0"',
            b'mod ("k") = "0"',
            b'MOD("k") = "0"',
            b'foo("k") = "0"',
            b'mod("k") = "x"',
            b'mod("k") = "99999999999999999999"',
            b'mod "k"',
            b'mod("k\\q") = "0"',
            b'mod("k") = "0',
            b"mod(",
            b'mod("a\\"b") = 1',
        )
    ),
    *(
        Case("txn", b"\n" + line + b"\n\n\n")
        for line in (
            b"put k",
            b"foo k",
            b"get",
            b"get k --prefix --from-key",
            b"get k --consistency x",
            b"del a b c",
            b'put k "\\q"',
        )
    ),
    Case("txn", b"\nget k --nosuch\n\n\n")._replace(first_error=True),
    Case("txn extra"),
    # An id is the server's choice: what is compared of a new lease is the form.
    both("lease grant 1000000"),
    *(both(f"lease grant 1000000 -w {form}") for form in ("json", "fields", "protobuf")),
    both("lease grant 9000000000"),
    both("lease grant 9000000001"),
    both("lease grant"),
    Case("lease grant x"),
    Case("lease grant 1 2"),
    Case("lease grant 99999999999999999999"),
    both("lease timetolive 7b"),
    both("lease timetolive 7b --keys"),
    *(both(f"lease timetolive 7b -w {form}") for form in ("json", "fields", "protobuf", "table")),
    Case("lease timetolive -- -1"),
    Case("lease timetolive"),
    Case("lease timetolive zz"),
    both("lease keep-alive --once 7b"),
    both("lease keep-alive 7b"),
    both("lease keep-alive 7b -w json"),
    Case("lease keep-alive"),
    Case("lease keep-alive 7b 7c"),
    both("lease revoke 7b"),
    both("lease revoke 0"),
    Case("lease revoke"),
    Case("lease revoke zz"),
    both("put a 1 --lease 7b"),
    both("endpoint hashkv --rev 99999"),
    Case("endpoint hashkv"),
    Case("endpoint hashkv --cluster"),
    Case("endpoint hashkv -w json"),
    Case("endpoint hashkv -w fields"),
    Case("endpoint hashkv -w table"),
    Case("endpoint hashkv -w protobuf"),
    both("alarm list"),
    Case("alarm list -w json"),
    Case("alarm list -w protobuf"),
    Case("alarm list extra"),
    both("alarm disarm"),
    Case("alarm disarm -w json"),
    Case("alarm disarm extra"),
    both("move-leader"),
    both("move-leader 1"),
    both("move-leader -- -1"),
    Case("move-leader 1 2"),
    Case("move-leader xyz"),
    Case("move-leader 10000000000000000"),
    both("compaction 3"),
    both("compaction 3"),
    Case("compaction 0"),
    Case("compaction -- -1"),
    both("compaction 99999"),
    both("compact 99999"),
    Case("mem li"),
    wrong("m list"),
    wrong("member re 1 2"),
    Case("compaction 4 -w json"),
    Case("compaction 5 -w fields --physical"),
    both("get a --rev 2"),
    both("compaction"),
    Case("compaction x"),
    Case("compaction 1 2"),
    *(both(f"member list -w {form}") for form in ("simple", "json", "fields", "table")),
    Case("member list -w protobuf"),
    Case("member list extra"),
    *(both(f"endpoint status -w {form}") for form in ("simple", "fields", "table", "protobuf")),
    # etcdctl 3.4 leaves out what etcd 3.6 says in addition.
    Case("endpoint status -w json"),
    Case("--endpoints http://{live} endpoint status"),
    Case("endpoint status --cluster"),
    *(both(f"endpoint health -w {form}") for form in ("simple", "json", "fields", "table", "protobuf")),
    Case("endpoint health --cluster"),
    *(
        Case(f"--endpoints {{dead}} --command-timeout 300ms --dial-timeout 300ms endpoint health -w {form}")
        for form in ("simple", "json", "fields", "table")
    ),
    Case("--endpoints {dead} --command-timeout 300ms endpoint status"),
    Case("--endpoints {dead} --command-timeout 300ms endpoint status -w json"),
    wrong("--endpoints= --command-timeout 300ms nosuch"),
    Case("nosuch"),
    Case("version extra")._replace(first_error=True),
    both("lock"),
    Case("lock name true"),
    both("lock name -- echo -n out"),
    Case("lock name --ttl 0 -- true"),
    Case("lock --ttl 5 name no-such-command"),
    wrong("lock name sh -c true"),
    wrong("lock --ttl x name"),
    both("elect"),
    both("elect name"),
    both("elect name value more"),
    both("elect -l name value"),
]
ALONE = [
    # Without a live endpoint before them.
    Case("--endpoints {dead} --command-timeout 300ms --dial-timeout 300ms get a")._replace(first_error=True),
    Case("--endpoints {dead} --command-timeout 300ms --dial-timeout 300ms put a 1")._replace(first_error=True),
    Case("--endpoints {dead} --command-timeout 300ms --dial-timeout 300ms member list")._replace(first_error=True),
    Case("--endpoints {dead} --command-timeout 300ms endpoint status --cluster")._replace(first_error=True),
    Case("--endpoints= get a"),
    Case("--endpoints {dead},{live} put after-a-dead-one 1"),
    Case("--endpoints http://{live} get after-a-dead-one"),
    # Behind all that tells the index: these expire soon.
    Case("--endpoints {live} lease grant 0"),
    Case("--endpoints {live} lease grant -- -5"),
    # Last, because etcdctl writes before it finds that it cannot print (reading alarms is an entry of the log, too);
    # raftctl refuses first.
    Case("--endpoints {live} alarm list -w table"),
    Case("--endpoints {live} put a 1 -w table"),
    Case("--endpoints {live} del after-a-dead-one -w table"),
]


def cases(kind: str) -> list[tuple[int, Case]]:
    return [(number, case) for number, case in enumerate([*CASES, *ALONE]) if kind == "etcd" or not case.etcd_only]


def identity(case: Case) -> str:
    return f"{case.line} <<< {case.stdin!r}" if case.stdin else case.line


Runs = dict[int, tuple[Result, Result]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Runs]:
    """What etcdctl and raftctl said to every case of a kind of server; run once."""
    done: dict[str, Runs] = {}

    def get(kind: str) -> Runs:
        if kind not in done:
            client, peer = free_ports(2)
            directory = tmp_path_factory.mktemp(kind)
            with refusing() as dead, Zygote() as zygote:
                said = [
                    _run_all(tool, kind, directory / name, (client, peer), dead)
                    for name, tool in (("etcdctl", etcdctl), ("raftctl", zygote.raftctl))
                ]
            done[kind] = {number: (said[0][number], said[1][number]) for number in said[0]}
        return done[kind]

    return get


def _run_all(
    tool: Callable[..., Result], kind: str, directory: Path, ports: tuple[int, int], dead: str
) -> dict[int, Result]:
    results = {}
    with serve(kind, directory, ports) as live:
        for number, case in cases(kind):
            words = shlex.split(case.line.format(live=live, dead=dead))
            if number < len(CASES):
                words = ["--endpoints", live, *(() if dead in words else PATIENT), *words]
            results[number] = tool(*words, stdin=case.stdin)
    return results


LOG_LINE = re.compile(r'^\{"level":.*\n', re.MULTILINE)
VARIES = [
    (re.compile(r"took = \S+"), "took = T"),
    (re.compile(r'"took":"[^"]+"'), '"took":"T"'),
    (re.compile(r'"Took" : \S+'), '"Took" : T'),
    (re.compile(r'"dbSize(InUse)?":\d+'), '"dbSize":N'),
    (re.compile(r'"DBSize" : \d+'), '"DBSize" : N'),
    (re.compile(r"\b\d+(\.\d)? [kM]B\b"), "SIZE"),
    (re.compile(r" +\d[\d.]*(m|µ|)s \|"), " T |"),
    (re.compile(r"\+-[-+]+\+"), "RULE"),
    (re.compile(r" +TOOK +"), " TOOK "),
    (re.compile(r" +DB SIZE +"), " DB SIZE "),
    (re.compile(r" +SIZE"), " SIZE"),
    (re.compile(r"lease [0-9a-f]{16} granted"), "lease L granted"),
    (re.compile(r'"ID" ?: ?\d{6,}(\n"TTL"|,"TTL")'), "ID, TTL"),
]


def normal(text: str) -> str:
    text = LOG_LINE.sub("", text)
    for pattern, replacement in VARIES:
        text = pattern.sub(replacement, text)
    return text.replace("etcdctl", "raftctl")


def first_error(result: Result) -> str:
    return next((line for line in normal(result.stderr).splitlines() if line.startswith("Error: ")), "")


ALL = [
    pytest.param(kind, number, case, id=f"{kind}: {identity(case)}", marks=marks)
    for kind, marks in [(KINDS[0].values[0], KINDS[0].marks), ("raftkv", ())]
    for number, case in cases(kind)
]


@pytest.mark.parametrize(("kind", "number", "case"), ALL)
def test_says_what_etcdctl_says(kind: str, number: int, case: Case, runs: Callable[[str], Runs]) -> None:
    theirs, ours = runs(kind)[number]
    assert "Traceback" not in ours.stderr
    if case.first_error:
        assert (first_error(ours), ours.status) == (first_error(theirs), theirs.status)
        return
    try:
        printed = (normal(ours.stdout.decode()), normal(theirs.stdout.decode()))
    except UnicodeDecodeError:
        assert ours.stdout == theirs.stdout
    else:
        assert printed[0] == printed[1]
    assert normal(ours.stderr) == normal(theirs.stderr)
    assert ours.status == theirs.status


def test_a_snapshot_that_is_not_saved_has_etcdctls_status(tmp_path: Path) -> None:
    with refusing() as dead, serve("raftkv", tmp_path / "server") as live, Zygote() as zygote:
        for endpoints, path in ((f"{live},{dead}", "s.db"), (dead, "s.db"), (live, "none/s.db"), (live, ".")):
            words = ("--endpoints", endpoints, "--dial-timeout", "500ms", "--command-timeout", "500ms")
            words += ("snapshot", "save", str(tmp_path / path))
            assert zygote.raftctl(*words).status == etcdctl(*words).status == 5, words
    assert not [*tmp_path.glob("s.db*")]
