"""Debian's etcdctl and raftctl against three real members: the same commands, the same bytes."""

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.raftctl import PATIENT, Result, etcdctl
from tests.cli.zygote import raftctl
from tests.support.processes import Cluster, cluster

pytestmark = pytest.mark.skipif(shutil.which("etcdctl") is None, reason="no etcdctl to compare with")


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("cluster"), 3) as running:
        yield running


Tool = Callable[..., Result]


def run_raw(tool: Tool, arguments: str, endpoints: str, stdin: bytes = b"") -> Result:
    return tool(
        *PATIENT, *shlex.split(arguments), stdin=stdin, ETCDCTL_ENDPOINTS=endpoints, RAFTCTL_ENDPOINTS=endpoints
    )


def last_error(errors: bytes) -> bytes:
    """The last line that says what went wrong, whichever program it names itself."""
    last = [line for line in errors.splitlines() if line.startswith(b"Error: ")][-1]
    return last.replace(b'"etcdctl"', b'"PROGRAM"').replace(b'"raftctl"', b'"PROGRAM"')


def run(tool: Tool, arguments: str, endpoints: str, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
    done = run_raw(tool, arguments, endpoints, stdin)
    # What differs from one call to the next: revisions and log positions grow, times vary.
    output = re.sub(rb'"(revision|raftIndex|raftAppliedIndex|dbSize\w*)":\d+', rb'"\1":N', done.stdout)
    output = re.sub(
        rb'"(Revision|RaftIndex|RaftAppliedIndex|(?:Prev)?(?:ModRevision|CreateRevision|Version)|DBSize)" : \d+',
        rb"\1 N",
        output,
    )
    output = re.sub(rb'"(mod_revision|create_revision|version)":\d+', rb'"\1":N', output)
    return done.status, output, done.stderr.encode()


COMMANDS = """\
put key value
put key value2 --prev-kv
put key value2 -w json
put key value2 -w fields
put binary \u00e9\u00fc
get key
get key -w json
get key -w fields
get key -w table
get key --hex
get key --print-value-only
get missing
get k --prefix
get k --prefix --keys-only
get a z
get a z --limit 1 -w json
get key --from-key
get "" --prefix --sort-by MODIFY --order DESCEND
get k --prefix --sort-by VERSION --order ASCEND -w json
get key --rev {revision}
get key --rev {revision} -w json
get key --rev 999999
get key --consistency s
get key --consistency x
get
get a --prefix --from-key
put
del k --prefix --prev-kv
del key --prev-kv -w fields
del nothing
del nothing -w json
del nothing -w fields
compaction 999999
endpoint status -w fields
endpoint hashkv --rev 2
endpoint hashkv --rev 2 -w fields
endpoint hashkv --rev 2 -w table
move-leader 1
move-leader
member list
member list -w json
member list -w fields
member list -w table
nosuch
"""


SILENT = {"get missing"}
"""What finds nothing says nothing."""


@pytest.mark.parametrize("command", COMMANDS.splitlines())
def test_raftctl_prints_what_etcdctl_prints(command: str, three: Cluster) -> None:
    endpoint = three.members[0].endpoint
    answers = []
    for tool in (etcdctl, raftctl):
        put = json.loads(run_raw(etcdctl, "put key value2 -w json", endpoint).stdout)
        run(etcdctl, "put key later", endpoint)
        answers.append(run(tool, command.format(revision=put["header"]["revision"]), endpoint))
    expected, found = answers
    assert found[:2] == expected[:2], answers
    assert bool(expected[1]) == (expected[0] == 0 and command not in SILENT), expected
    if expected[0]:
        assert last_error(found[2]) == last_error(expected[2])


@pytest.mark.parametrize("program", [etcdctl, raftctl], ids=["etcdctl", "raftctl"])
def test_a_transaction_is_read_from_standard_input(program: Tool, three: Cluster) -> None:
    run(program, "del t", three.endpoints)
    script = b'version("t") = "0"\n\nput t one\nget t\n\nget t\n\n'
    assert run(program, "txn", three.endpoints, script)[:2] == (0, b"SUCCESS\n\nOK\n\nt\none\n")
    assert run(program, "txn", three.endpoints, script)[:2] == (0, b"FAILURE\n\nt\none\n")


@pytest.mark.parametrize("program", [etcdctl, raftctl], ids=["etcdctl", "raftctl"])
def test_every_member_serves_what_was_put_through_another(program: Tool, three: Cluster) -> None:
    for number, member in enumerate(three.members):
        assert run(program, f"put from-{number} here", member.endpoint)[0] == 0
        for other in three.members:
            assert run(program, f"get from-{number} --print-value-only", other.endpoint)[:2] == (0, b"here\n")


@pytest.mark.parametrize("program", [etcdctl, raftctl], ids=["etcdctl", "raftctl"])
def test_endpoint_status_and_health_name_one_leader(program: Tool, three: Cluster) -> None:
    status = run(program, "endpoint status", three.endpoints)
    assert status[0] == 0
    assert len([line for line in status[1].splitlines() if line.split(b", ")[4] == b"true"]) == 1
    assert all(line.split(b", ")[2] == b"3.6.0" for line in status[1].splitlines())
    assert run(program, "endpoint health", three.endpoints)[0] == 0


def test_compaction_is_refused_twice_alike(three: Cluster) -> None:
    run(etcdctl, "put c 1", three.endpoints)
    run(etcdctl, "put c 2", three.endpoints)
    assert run(raftctl, "compaction 3", three.endpoints)[:2] == (0, b"compacted revision 3\n")
    for program in (etcdctl, raftctl):
        code, _, errors = run(program, "compaction 3", three.endpoints)
        assert code == 1
        assert errors.decode().endswith("Error: etcdserver: mvcc: required revision has been compacted\n")


def test_a_long_range_is_printed_page_by_page_at_one_revision(three: Cluster, tmp_path: Path) -> None:

    with three.client() as client:
        for number in range(2_500):
            client.put(f"/long/{number:05d}", "v")
    code, output, _ = run(raftctl, "get /long/ --prefix --keys-only", three.endpoints)
    assert code == 0
    keys = output.split()
    assert len(keys) == 2_500
    assert keys == sorted(keys)


@pytest.mark.parametrize("program", [etcdctl, raftctl], ids=["etcdctl", "raftctl"])
@pytest.mark.parametrize("command", ["endpoint status", "endpoint hashkv", "endpoint health"])
def test_one_endpoint_is_enough_to_find_them_all(program: Tool, command: str, three: Cluster) -> None:
    """With --cluster, etcd's client of 3.4 sends the URL of a member as the authority of its requests."""
    code, output, errors = run(program, f"{command} --cluster", three.members[1].endpoint)
    assert code == 0, errors
    said = output + errors
    assert all(member.endpoint.encode() in said for member in three.members), said
