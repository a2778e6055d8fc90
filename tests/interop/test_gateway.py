"""The same HTTP requests to etcd and to raftkv: status and body equal, except for ids and what time decides."""

import itertools
import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from h2.connection import H2Connection
from h2.events import DataReceived

from tests.cli.servers import serve

pytestmark = [
    pytest.mark.skipif(shutil.which("etcd") is None, reason="no etcd to compare with"),
    pytest.mark.skipif(shutil.which("curl") is None, reason="no curl to ask with"),
]

VERSIONS = ["--http1.1", "--http2-prior-knowledge"]


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve("etcd", tmp_path_factory.mktemp("etcd")) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def raftkv(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve("raftkv", tmp_path_factory.mktemp("raftkv")) as endpoint:
        yield endpoint


def curl(endpoint: str, path: str, *options: str, seconds: str = "60") -> tuple[int, bytes]:
    """Status and body."""
    command = ["curl", "--silent", "--max-time", seconds, "--write-out", "%{stderr}%{http_code}", *options]
    done = subprocess.run([*command, f"http://{endpoint}{path}"], capture_output=True, timeout=120, check=False)
    return int(done.stderr), done.stdout


def post(endpoint: str, path: str, body: str, version: str = "--http1.1") -> tuple[int, bytes]:
    return curl(endpoint, path, "--data-binary", body, version)


def masked(body: bytes) -> bytes:
    """Hide what differs from one cluster to the next. Keys of a test are new, so revisions differ as well."""
    names = rb"cluster_id|member_id|revision|raft_term|create_revision|mod_revision|leader|ID"
    return re.sub(rb'"(%s)":"\d+"' % names, rb'"\1":"N"', body)


def test_a_keys_life(etcd: str, raftkv: str) -> None:
    requests = [
        ("put", '{"key":"Zm9v","value":"YmFy"}'),
        ("put", '{"key":"Zm9v","value":"YmF6","prev_kv":true}'),
        ("put", '{"key":"Zm9vAP/+","value":"_-8="}'.replace("_-", "/+")),
        ("range", '{"key":"Zm9v"}'),
        ("range", '{"key":"Zm9v","range_end":"Zm9w","sort_order":"DESCEND","limit":"1"}'),
        ("range", '{"key":"Zm9v","rangeEnd":"Zm9w","keys_only":true,"serializable":true}'),
        ("range", '{"key":"AA==","range_end":"AA==","count_only":true}'),
        ("txn", '{"compare":[{"key":"Zm9v","result":"EQUAL","target":"VERSION","version":"2"}],'
                '"success":[{"request_put":{"key":"Zm9v","value":"eA=="}},{"request_range":{"key":"Zm9v"}},'
                '{"request_delete_range":{"key":"YQ=="}},{"request_txn":{"failure":[]}}]}'),
        ("txn", '{"compare":[{"key":"Zm9v","target":"CREATE"}],"failure":[{"request_range":{"key":"Zm9v"}}]}'),
        ("txn", "{}"),
        ("deleterange", '{"key":"Zm9v","prev_kv":true}'),
        ("deleterange", '{"key":"Zm9v"}'),
        ("compaction", '{"revision":"1000000"}'),
    ]  # fmt: skip
    for (name, body), version in itertools.product(requests[:1], VERSIONS):
        assert post(raftkv, f"/v3/kv/{name}", body, version)[0] == 200
    post(etcd, "/v3/kv/put", requests[0][1])
    for endpoint in (etcd, raftkv):
        post(endpoint, "/v3/kv/deleterange", '{"key":"AA==","range_end":"AA=="}')
    for name, body in requests:
        expected = post(etcd, f"/v3/kv/{name}", body)
        found = post(raftkv, f"/v3/kv/{name}", body)
        assert (found[0], masked(found[1])) == (expected[0], masked(expected[1])), body


REFUSED = [
    ("/v3/kv/range", ""),
    ("/v3/kv/range", "null"),
    ("/v3/kv/range", '{"key":""}'),
    ("/v3/kv/range", "{bad"),
    ("/v3/kv/range", '{"key":5}'),
    ("/v3/kv/range", '{"key":"!!"}'),
    ("/v3/kv/range", '{"key":"Zm9v","limit":1e1}'),
    ("/v3/kv/range", '{"key":"Zm9v","sort_order":"NOSUCH"}'),
    ("/v3/kv/range", '{"key":"Zm9v","revision":"99999"}'),
    ("/v3/kv/put", '{"key":"Zm9v","lease":"12345"}'),
    ("/v3/kv/put", '{"key":"Zm9v","value":"YQ==","ignore_value":true}'),
    ("/v3/kv/txn", '{"success":[{}]}'),
    ("/v3/kv/txn", '{"compare":5}'),
    ("/v3/watch", "{bad"),
    ("/v3/nosuch", "{}"),
    ("/v3/", "{}"),
    ("/v3/kv/range/", "{}"),
    ("/v3alpha/kv/range", "{}"),
    ("/nosuch", ""),
    ("/", ""),
    ("/version", ""),
    ("/health", ""),
]


@pytest.mark.parametrize("version", VERSIONS)
def test_refusals(version: str, etcd: str, raftkv: str) -> None:
    for path, body in REFUSED:
        expected = post(etcd, path, body)
        assert expected[0] >= 400
        assert post(raftkv, path, body, version) == expected, (path, body)


def test_a_request_that_is_too_large(etcd: str, raftkv: str, tmp_path: Path) -> None:
    for size in (1_600_000, 2_400_000):
        large = tmp_path / "large"
        large.write_text(json.dumps({"key": "Zm9v", "value": "YWFh" * (size // 3)}))
        expected = post(etcd, "/v3/kv/put", f"@{large}")
        assert expected[0] in (400, 429)
        assert post(raftkv, "/v3/kv/put", f"@{large}") == expected


def test_other_methods(etcd: str, raftkv: str) -> None:
    for method, path in itertools.product(("GET", "PUT", "OPTIONS"), ("/v3/kv/range", "/v3/nosuch", "/nosuch")):
        assert curl(raftkv, path, "--request", method) == curl(etcd, path, "--request", method), (method, path)
    for path in ("/health", "/version", "/v3/kv/range"):
        assert curl(raftkv, path, "--head")[0] == curl(etcd, path, "--head")[0] == 405


def test_headers(etcd: str, raftkv: str) -> None:
    for path, body in (
        ("/v3/kv/range", '{"key":"Zm9v"}'),
        ("/v3/kv/range", "{bad"),
        ("/v3/nosuch", ""),
        ("/health", ""),
    ):
        found, expected = (headers(endpoint, path, body) for endpoint in (raftkv, etcd))
        for name in ("date", "content-length"):
            found.pop(name, None), expected.pop(name, None)
        assert found == expected, path


def test_allowed_origins(tmp_path: Path) -> None:
    """The same CORS headers as etcd's, for pages of an allowed origin and of others."""
    answers = []
    for kind in ("etcd", "raftkv"):
        with serve(kind, tmp_path / kind, flags=("--cors", "http://a.example:80,http://b.example:80")) as endpoint:
            found = []
            for origin, method, path in itertools.product(
                ("http://b.example:80", "http://c.example:80"), ("OPTIONS", "POST", "GET"), ("/v3/kv/range", "/health")
            ):
                asked = ["--request", method, "--header", f"Origin: {origin}", "--data-binary", '{"key":"Zm9v"}']
                status, dumped = curl(endpoint, path, *asked, "--dump-header", "-", "--output", "/dev/null")
                lines = sorted(line.lower() for line in dumped.decode().splitlines() if "ccess-" in line)
                found.append((origin, method, path, status, lines))
            answers.append(found)
    assert answers[1] == answers[0]
    assert any("access-control-allow-origin: http://b.example:80" in lines for *_, lines in answers[1])


def headers(endpoint: str, path: str, body: str) -> dict[str, str]:
    dumped = curl(endpoint, path, "--data-binary", body, "--dump-header", "-", "--output", "/dev/null")[1].decode()
    lines = (line.partition(": ") for line in dumped.splitlines()[1:] if line)
    return {name.lower(): value for name, _, value in lines}


def test_leases(etcd: str, raftkv: str) -> None:
    requests = [
        ("/v3/lease/grant", '{"TTL":"60","ID":"77"}'),
        ("/v3/lease/grant", '{"TTL":60,"ID":77}'),
        ("/v3/lease/grant", '{"TTL":"9999999999"}'),
        ("/v3/kv/put", '{"key":"bGVhc2Vk","lease":"77"}'),
        ("/v3/lease/leases", ""),
        ("/v3/kv/lease/leases", "{}"),
        ("/v3/lease/timetolive", '{"ID":"78"}'),
        ("/v3/kv/lease/timetolive", '{"ID":"78","keys":true}'),
        ("/v3/lease/keepalive", '{"ID":"77"}'),
        ("/v3/lease/keepalive", '{"ID":"77"} {"ID":"78"}\n{"ID":77}'),
        ("/v3/lease/keepalive", '{"ID":"77"} {x'),
        ("/v3/lease/keepalive", "5"),
        ("/v3/lease/keepalive", ""),
        ("/v3/lease/revoke", '{"ID":"78"}'),
        ("/v3/kv/lease/revoke", '{"ID":"77"}'),
        ("/v3/kv/range", '{"key":"bGVhc2Vk"}'),
    ]
    for path, body in requests:
        expected, found = (post(endpoint, path, body) for endpoint in (etcd, raftkv))
        assert (found[0], masked(found[1])) == (expected[0], masked(expected[1])), (path, body)


def test_a_body_that_comes_in_chunks(etcd: str, raftkv: str, tmp_path: Path) -> None:
    """Requests larger than a chunk, and many in one body, of a length nobody has told beforehand."""
    renewals = tmp_path / "renewals"
    renewals.write_text('{"ID":"83"} {"ID":"84"}\n' * 2000)
    put = tmp_path / "put"
    put.write_text(json.dumps({"key": "Y2h1bmtz", "value": "YWFh" * 100_000}))
    chunked = ("--header", "Transfer-Encoding: chunked", "--data-binary")
    for path, data in (("/v3/kv/put", f"@{put}"), ("/v3/kv/range", '{"key":"Y2h1bmtz"}')):
        expected, found = (curl(endpoint, path, *chunked, data) for endpoint in (etcd, raftkv))
        assert (found[0], masked(found[1])) == (expected[0], masked(expected[1])) == (200, masked(found[1]))
    # etcd stops reading such a body when it has begun to answer.
    post(raftkv, "/v3/lease/grant", '{"TTL":"600","ID":"83"}')
    status, answer = curl(raftkv, "/v3/lease/keepalive", *chunked, f"@{renewals}", seconds="50")
    assert status == 200
    assert answer.count(b'"TTL":"600"}}\n') == 2000
    assert answer.count(b"\n") == 4000


def test_what_is_left_of_a_lease(etcd: str, raftkv: str) -> None:
    answers = []
    for endpoint in (etcd, raftkv):
        post(endpoint, "/v3/lease/grant", '{"TTL":"600","ID":"79"}')
        post(endpoint, "/v3/kv/put", '{"key":"bGVmdA==","lease":"79"}')
        status, body = post(endpoint, "/v3/lease/timetolive", '{"ID":"79","keys":true}')
        assert status == 200
        answers.append(re.sub(rb'"TTL":"5\d\d"', b'"TTL":"T"', masked(body).replace(b'"TTL":"600"', b'"TTL":"T"')))
    assert answers[1] == answers[0]


def test_locks_and_elections(etcd: str, raftkv: str) -> None:
    requests = [
        ("/v3/lease/grant", '{"TTL":"600","ID":"81"}'),
        ("/v3/lock/lock", '{"name":"bG9jaw==","lease":"81"}'),
        ("/v3/lock/unlock", '{"key":"bG9jay81MQ=="}'),
        ("/v3/lock/lock", '{"name":"bG9jaw==","lease":"82"}'),
        ("/v3/election/leader", '{"name":"ZWxlY3Q="}'),
        ("/v3/election/campaign", '{"name":"ZWxlY3Q=","lease":"81","value":"bWU="}'),
        ("/v3/election/leader", '{"name":"ZWxlY3Q="}'),
        ("/v3/election/proclaim", '{"leader":{"name":"ZWxlY3Q=","key":"ZWxlY3QvNTE=","rev":"1"},"value":"bWU="}'),
        ("/v3/election/resign", "{}"),
        ("/v3/lease/revoke", '{"ID":"81"}'),
    ]
    for path, body in requests:
        expected, found = (post(endpoint, path, body) for endpoint in (etcd, raftkv))
        same = [re.sub(rb'"rev":"\d+"', b'"rev":"N"', masked(answer)) for _, answer in (found, expected)]
        assert (found[0], same[0]) == (expected[0], same[1]), (path, body)


def test_members_and_status(etcd: str, raftkv: str) -> None:
    def shape(value: object) -> object:
        return {name: shape(inner) for name, inner in value.items()} if isinstance(value, dict) else type(value)

    expected, found = (json.loads(post(endpoint, "/v3/cluster/member/list", "")[1]) for endpoint in (etcd, raftkv))
    assert shape(found) == shape(expected)
    assert shape(found["members"][0]) == shape(expected["members"][0])
    expected, found = (json.loads(post(endpoint, "/v3/maintenance/status", "")[1]) for endpoint in (etcd, raftkv))
    assert shape(expected).items() <= shape(found).items()  # type: ignore[attr-defined]


def test_the_beta_path_is_the_same(etcd: str, raftkv: str) -> None:
    body = '{"key":"bm9uZQ=="}'
    expected, found = (post(endpoint, "/v3beta/kv/range", body) for endpoint in (etcd, raftkv))
    assert (found[0], masked(found[1])) == (expected[0], masked(expected[1]))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_watch_streams_lines_until_the_client_leaves(version: str, etcd: str, raftkv: str) -> None:
    key = "d2F0Y2hlZA=="
    for endpoint in (etcd, raftkv):
        post(endpoint, "/v3/kv/deleterange", f'{{"key":"{key}"}}')
    lines = {}
    for endpoint in (etcd, raftkv):
        asked = version if endpoint == raftkv else "--http1.1"
        command = ["curl", "--silent", "--no-buffer", "--max-time", "90", asked]
        command += ["--data-binary", f'{{"create_request":{{"key":"{key}"}}}}', f"http://{endpoint}/v3/watch"]
        watching = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert watching.stdout is not None
        try:
            found = [watching.stdout.readline()]
            post(endpoint, "/v3/kv/put", f'{{"key":"{key}","value":"MQ=="}}')
            found.append(watching.stdout.readline())
            post(endpoint, "/v3/kv/deleterange", f'{{"key":"{key}"}}')
            found.append(watching.stdout.readline())
        finally:
            watching.kill()
            watching.wait()
            watching.stdout.close()
        lines[endpoint] = [masked(line) for line in found]
    assert lines[raftkv] == lines[etcd]
    assert b'"type":"DELETE"' in lines[raftkv][2]


@pytest.mark.parametrize(
    "body",
    [
        '{"create_request":{"key":"dGltZWQ=","start_revision":"1","prev_kv":true,"filters":["NODELETE"]}}',
        '{"create_request":{"key":"dGltZWQ=","watch_id":"3"}} {"create_request":{"key":"dGltZWQ=","watch_id":3}}',
        '{"create_request":{"key":"dGltZWQ="}}{"cancel_request":{"watch_id":"0"}}',
        '{"create_request":{"key":"dGltZWQ=","start_revision":"1000000"}} {"cancel_request":{"watch_id":"7"}}',
        '{"create_request":{"key":"dGltZWQ="}} {x',
    ],
)
def test_a_watch_that_ends_with_its_time(body: str, etcd: str, raftkv: str) -> None:
    for endpoint in (etcd, raftkv):
        if b'"kvs"' not in post(endpoint, "/v3/kv/range", '{"key":"dGltZWQ="}')[1]:
            post(endpoint, "/v3/kv/put", '{"key":"dGltZWQ=","value":"MQ=="}')
            post(endpoint, "/v3/kv/put", '{"key":"dGltZWQ=","value":"Mg=="}')
    # A busy machine may need longer to say what there is to say.
    for limit in ("1S", "4S", "16S"):
        expected, found = (until(endpoint, body, limit) for endpoint in (etcd, raftkv))
        if found == expected:
            break
    assert found == expected
    assert b'{"error":{"grpc_code":4,"http_code":504,' in found[1]


def until(endpoint: str, body: str, limit: str) -> tuple[int, bytes]:
    """Watch with a time limit."""
    options = ("--data-binary", body, "--header", f"Grpc-Timeout: {limit}")
    status, lines = curl(endpoint, "/v3/watch", *options, seconds="25")
    # Which of two codes etcd gives to the end of the time is a race within etcd.
    raced = b'"grpc_code":2,"http_code":500,"message":"context deadline exceeded","http_status":"Internal Server Error"'
    due = b'"grpc_code":4,"http_code":504,"message":"context deadline exceeded","http_status":"Gateway Timeout"'
    return status, masked(lines).replace(raced, due)


def test_over_http2_a_watch_takes_requests_while_it_answers(raftkv: str) -> None:
    host, port = raftkv.split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        http = H2Connection()
        http.initiate_connection()
        pairs = {"method": "POST", "path": "/v3/watch", "scheme": "http", "authority": raftkv}
        http.send_headers(1, [(f":{name}", value) for name, value in pairs.items()])
        for number in (1, 2):
            http.send_data(1, b'{"create_request":{"key":"YQ==","watch_id":"%d"}}' % number)
            connection.sendall(http.data_to_send())
            answer = json.loads(next_data(connection, http))
            assert answer["result"]["watch_id"] == str(number)


def next_data(connection: socket.socket, http: H2Connection) -> bytes:
    while True:
        received = connection.recv(65536)
        assert received, "the server closed the connection"
        events = http.receive_data(received)
        connection.sendall(http.data_to_send())
        for event in events:
            if isinstance(event, DataReceived):
                return event.data
