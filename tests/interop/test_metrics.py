"""Metrics under etcd's names: each name and type is compared with a running etcd, or with what later ones have."""

import contextlib
import json
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from raftkv import errors
from raftkv.pb import rpc_pb2
from tests.cli.servers import serve
from tests.support.processes import START_SECONDS, Cluster, Process, cluster, free_ports

SECRET = "hunter2"

AFTER_3_4 = {
    "etcd_debugging_server_alarms": "gauge",
    "etcd_server_healthcheck": "gauge",
    "etcd_server_healthchecks_total": "counter",
    "etcd_server_apply_duration_seconds": "histogram",
    "etcd_server_range_duration_seconds": "histogram",
    "etcd_server_learner_promote_failures": "counter",
    "etcd_disk_wal_write_duration_seconds": "histogram",
    "etcd_debugging_mvcc_db_compaction_last": "gauge",
}
"""Names of etcd 3.6, whose first series appear when they are used."""
WITH_PEERS = {
    "etcd_network_active_peers": "gauge",
    "etcd_network_known_peers": "gauge",
    "etcd_network_peer_sent_bytes_total": "counter",
    "etcd_network_peer_received_bytes_total": "counter",
    "etcd_network_peer_sent_failures_total": "counter",
    "etcd_network_peer_received_failures_total": "counter",
    "etcd_network_disconnected_peers_total": "counter",
    "etcd_network_peer_round_trip_time_seconds": "histogram",
    **{
        f"etcd_network_snapshot_{way}_{name}": kind
        for way in ("send", "receive")
        for name, kind in {
            "success": "counter",
            "failures": "counter",
            "inflights_total": "gauge",
            "total_duration_seconds": "histogram",
        }.items()
    },
}
OWN = ("python_", "raftkv_")
ALERTS = [
    "etcd_disk_backend_commit_duration_seconds_bucket",
    "etcd_disk_wal_fsync_duration_seconds_bucket",
    "etcd_mvcc_db_total_size_in_bytes",
    "etcd_mvcc_db_total_size_in_use_in_bytes",
    "etcd_server_quota_backend_bytes",
    "etcd_network_peer_round_trip_time_seconds_bucket",
    "etcd_network_peer_sent_failures_total",
    "etcd_network_peer_sent_bytes_total",
    "etcd_network_peer_received_bytes_total",
    "etcd_network_client_grpc_received_bytes_total",
    "etcd_network_client_grpc_sent_bytes_total",
    "etcd_server_has_leader",
    "etcd_server_id",
    "etcd_server_leader_changes_seen_total",
    "etcd_server_proposals_applied_total",
    "etcd_server_proposals_committed_total",
    "etcd_server_proposals_failed_total",
    "etcd_server_proposals_pending",
    "etcd_debugging_mvcc_watcher_total",
    "etcd_debugging_mvcc_keys_total",
    "grpc_server_handled_total",
    "grpc_server_handling_seconds_bucket",
    "grpc_server_started_total",
    "process_open_fds",
    "process_max_fds",
    "process_resident_memory_bytes",
]
"""What the alerts and the dashboard that etcd ships with ask for."""


def scrape(endpoint: str) -> str:
    with urllib.request.urlopen(f"http://{endpoint}/metrics", timeout=60) as answer:
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        return str(answer.read().decode())


def types(text: str) -> dict[str, str]:
    lines = (line.split() for line in text.splitlines() if line.startswith("# TYPE "))
    return {name: kind for _, _, name, kind in lines}


def values(text: str) -> dict[str, float]:
    """Value of every sample, by name and labels other than those of the type of call."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {name: value for name, value in sample.labels.items() if name not in ("grpc_type", "grpc_service")}
            if sample.labels.get("grpc_service", "etcd").startswith("etcd"):
                found[sample.name + "".join(f" {value}" for _, value in sorted(labels.items()))] = sample.value
    return found


@pytest.fixture(scope="module")
def metrics_port() -> int:
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def member(tmp_path_factory: pytest.TempPathFactory, metrics_port: int) -> Iterator[Process]:
    client, peer = free_ports(2)
    flags = ["--listen-metrics-urls", f"http://127.0.0.1:{metrics_port}", "--warning-apply-duration", "1ns"]
    flags += ["--metrics", "extensive", "--log-format", "json", "--log-level", "debug", "--enable-pprof"]
    one = Process("m0", tmp_path_factory.mktemp("m0"), client, peer, f"m0=http://127.0.0.1:{peer}", *flags)
    one.start()
    try:
        wait_ready(one)
        yield one
    finally:
        one.kill()


def wait_ready(member: Process) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            post(member, "/v3/kv/range", b'{"key":"cmVhZHk="}')
            return
        except OSError as error:
            assert time.monotonic() < deadline, f"{error}\n{member.log()}"
            time.sleep(0.05)


@pytest.mark.skipif(shutil.which("etcd") is None, reason="no etcd to compare with")
def test_every_name_has_etcds_type(member: Process, tmp_path: Path) -> None:
    with serve("etcd", tmp_path) as etcd:
        known = types(scrape(etcd)) | AFTER_3_4 | WITH_PEERS | {"grpc_server_handling_seconds": "histogram"}
    found = types(scrape(member.endpoint))
    own = {name for name in found if name.startswith(OWN)}
    assert {name: kind for name, kind in found.items() if name not in own and known.get(name) != kind} == {}
    assert len(found) - len(own) > 60


def test_numbers_follow_what_clients_do(member: Process, metrics_port: int) -> None:
    before = values(scrape(member.endpoint))
    with member.client() as client:
        client.put("metrics/1", "12345")
        client.put("metrics/2", "12345")
        client.range("metrics/1")
        client.delete("metrics/1")
        with pytest.raises(errors.FutureRev):
            client.range("metrics/1", revision=1000)
        with pytest.raises(Exception, match="key is not provided"):
            client.put("", "")
    after = values(scrape(f"127.0.0.1:{metrics_port}"))
    grown = {name: after[name] - before.get(name, 0.0) for name in after}
    assert grown["etcd_mvcc_put_total"] == grown["etcd_debugging_mvcc_put_total"] == 2
    assert grown["etcd_mvcc_delete_total"] == grown["etcd_debugging_mvcc_keys_total"] == 1
    assert grown["etcd_mvcc_range_total"] == 2
    assert grown["etcd_server_apply_duration_seconds_count Put true v3"] == 2
    assert grown["etcd_server_apply_duration_seconds_count DeleteRange true v3"] == 1
    assert 0 < grown["etcd_server_apply_duration_seconds_sum Put true v3"] < 30
    assert grown["etcd_server_range_duration_seconds_count true"] == 1
    assert 0 < grown["etcd_server_range_duration_seconds_sum true"] < 30
    assert grown["etcd_server_range_duration_seconds_count false"] == 1
    assert grown["etcd_debugging_mvcc_total_put_size_in_bytes"] == 28
    assert grown["etcd_debugging_mvcc_current_revision"] == 3
    assert grown["grpc_server_started_total Put"] == 3
    assert grown["grpc_server_handled_total OK Put"] == 2
    assert grown["grpc_server_handled_total InvalidArgument Put"] == 1
    assert grown["grpc_server_msg_received_total Put"] == 3
    assert grown["grpc_server_msg_sent_total Put"] == 2
    assert grown["grpc_server_handling_seconds_count Put"] == grown["grpc_server_handling_seconds_bucket Put +Inf"] == 3
    assert 0 < grown["grpc_server_handling_seconds_sum Put"] < 30
    assert 'grpc_method="Lock",grpc_service="v3lockpb.Lock",grpc_type="unary"' in scrape(member.endpoint)
    assert grown["etcd_network_client_grpc_received_bytes_total"] > 40
    assert grown["etcd_network_client_grpc_sent_bytes_total"] > 40
    assert grown["etcd_server_proposals_applied_total"] == grown["etcd_server_proposals_committed_total"] == 3
    assert grown["etcd_server_slow_apply_total"] == 3
    assert after["etcd_server_has_leader"] == after["etcd_server_is_leader"] == 1
    assert after["etcd_server_proposals_pending"] == 0
    fsync = "etcd_disk_wal_fsync_duration_seconds"
    assert after[f"{fsync}_bucket +Inf"] == after[f"{fsync}_count"]
    assert grown["etcd_disk_wal_fsync_duration_seconds_count"] >= 3
    assert grown["etcd_disk_wal_write_bytes_total"] > 50
    assert grown["etcd_disk_wal_write_duration_seconds_count"] >= 3
    assert grown["etcd_server_client_requests_total unknown unary"] == 6


def test_requests_are_counted_by_the_version_a_client_names(member: Process) -> None:
    """And clients cannot make ever more series of it."""
    before = values(scrape(member.endpoint))
    request = rpc_pb2.RangeRequest(key=b"a").SerializeToString()
    create = rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(key=b"a")).SerializeToString()
    with grpc.insecure_channel(member.endpoint) as channel:
        get = channel.unary_unary("/etcdserverpb.KV/Range")
        for version in ("3.5", "3.5", "x" * 100, *map(str, range(100))):
            get(request, metadata=(("client-api-version", version),), timeout=60)
        watch = channel.stream_stream("/etcdserverpb.Watch/Watch")(iter([create]), timeout=60)
        assert next(watch)
        watch.cancel()
    after = values(scrape(member.endpoint))
    name = "etcd_server_client_requests_total"
    found = {key: value for key, value in after.items() if key.startswith(name)}
    assert found[f"{name} 3.5 unary"] == 2
    assert found[f"{name} 0 unary"] == 1
    assert found[f"{name} unknown stream"] - before.get(f"{name} unknown stream", 0) == 1
    assert sum(found.values()) - sum(value for key, value in before.items() if key.startswith(name)) == 104
    assert len(found) < 70


def test_rare_work_is_timed(member: Process) -> None:
    before = values(scrape(member.endpoint))
    with member.client() as client:
        client.put("timed", "1")
        revision = client.put("timed", "2").header.revision
        client.compact(revision, physical=True)
        for _ in client.snapshot():
            continue
    for path in ("defragment", "hash"):
        post(member, f"/v3/maintenance/{path}", b"{}")
    after = values(scrape(member.endpoint))
    grown = {name: after[name] - before.get(name, 0.0) for name in after}
    assert grown["etcd_disk_backend_defrag_duration_seconds_count"] == 1
    assert grown["etcd_disk_backend_snapshot_duration_seconds_count"] == 1
    assert grown["etcd_mvcc_hash_rev_duration_seconds_count"] + grown["etcd_mvcc_hash_duration_seconds_count"] >= 1
    assert grown["etcd_debugging_mvcc_db_compaction_keys_total"] >= 1
    compactions = "etcd_debugging_mvcc_db_compaction"
    assert grown[f"{compactions}_total_duration_milliseconds_count"] == 1
    assert grown[f"{compactions}_pause_duration_milliseconds_count"] >= 1
    assert before[f"{compactions}_last"] == 0
    assert after[f"{compactions}_last"] == pytest.approx(time.time(), abs=60)
    assert after["etcd_disk_defrag_inflight"] == after["etcd_server_snapshot_apply_in_progress_total"] == 0
    assert grown["promhttp_metric_handler_requests_total 200"] == 1
    assert 5 < after["os_fd_used"] < after["os_fd_limit"]


def test_watches_and_leases_are_counted(member: Process) -> None:
    before = values(scrape(member.endpoint))
    with urllib.request.urlopen(
        f"http://{member.endpoint}/v3/watch", b'{"create_request":{"key":"YQ=="}} {"create_request":{"key":"Yg=="}}'
    ) as watch:
        assert b'"created":true' in watch.readline()
        assert b'"created":true' in watch.readline()
        during = values(scrape(member.endpoint))
        with member.client() as client:
            client.put("a", "1")
        assert b'"events"' in watch.readline()
        after = values(scrape(member.endpoint))
    assert during["etcd_debugging_mvcc_watch_stream_total"] == 1
    assert during["etcd_debugging_mvcc_watcher_total"] == 2
    sent = "grpc_server_msg_sent_total Watch"
    assert (during[sent] - before[sent], after[sent] - before[sent]) == (2, 3)
    granted = json.loads(post(member, "/v3/lease/grant", b'{"TTL":"60"}'))
    post(member, "/v3/lease/revoke", b'{"ID":"%s"}' % granted["ID"].encode())
    end = values(scrape(member.endpoint))
    ttl = "etcd_debugging_lease_ttl_total_bucket"
    assert [end[f"{ttl} {bound}"] - before[f"{ttl} {bound}"] for bound in ("32.0", "64.0", "+Inf")] == [0, 1, 1]
    for name in ("granted", "revoked"):
        assert end[f"etcd_debugging_lease_{name}_total"] - before[f"etcd_debugging_lease_{name}_total"] == 1


def post(member: Process, path: str, body: bytes, **headers: str) -> bytes:
    request = urllib.request.Request(f"http://{member.endpoint}{path}", body, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return bytes(answer.read())


def test_no_log_line_and_no_page_holds_a_value_or_a_secret(member: Process) -> None:
    with member.client() as client:
        client.put("secrets/1", SECRET)
        client.range("secrets/", prefix=True)
    post(member, "/v3/kv/txn", b'{"success":[{"request_put":{"key":"c2VjcmV0cy8y","value":"aHVudGVyMg=="}}]}')
    with contextlib.suppress(urllib.error.HTTPError):
        post(member, "/v3/auth/authenticate", b'{"name":"root","password":"hunter2"}', authorization=SECRET)
    lines = [json.loads(line) for line in member.log().splitlines()]
    slow = [line for line in lines if line["msg"] == "a request took too long"]
    assert any(line.get("key") == "secrets/1" and line["operation"] == "put" for line in slow)
    assert any(line["operation"] == "txn" and line["success"] == 1 for line in slow)
    assert all({"took", "queue", "commit", "apply", "last-fsync", "expected-duration"} <= line.keys() for line in slow)
    stacks = urllib.request.urlopen(f"http://{member.endpoint}/debug/stacks", timeout=60).read().decode()
    assert "Stack for <Task" in stacks
    for text in (member.log(), scrape(member.endpoint), stacks):
        assert SECRET not in text
        assert "aHVudGVyMg" not in text


def test_members_count_each_other(tmp_path: Path) -> None:
    with cluster(tmp_path, 3, "--metrics", "extensive") as three:
        three.steadily(lambda leader: check_peers(three, leader))


def check_peers(three: Cluster, leader: Process) -> None:
    with leader.client() as client:
        client.put("a", "1" * 1000)
    for member in three.members:
        # It has what was put.
        three.wait_ready(member)
    text = scrape(leader.endpoint)
    found = values(text)
    assert {name: kind for name, kind in types(text).items() if name in WITH_PEERS} == WITH_PEERS
    samples = {line.partition("{")[0].partition(" ")[0] for line in text.splitlines()}
    assert [name for name in ALERTS if name not in samples] == []
    for prefix in ("etcd_network_active_peers", "etcd_network_known_peers"):
        assert [value for name, value in found.items() if name.startswith(prefix)] == [1, 1]
    sent = [value for name, value in found.items() if name.startswith("etcd_network_peer_sent_bytes_total")]
    assert len(sent) == 2
    assert min(sent) > 1000
    with three.client() as client:
        ids = {one.endpoint: client.status(one.endpoint).header.member_id for one in three.members}
    for name in ("sent_bytes_total", "sent_failures_total", "round_trip_time_seconds_count"):
        to = re.findall(rf'^etcd_network_peer_{name}{{To="(\w+)"}} ', text, re.MULTILINE)
        assert sorted(to) == sorted(f"{ids[one.endpoint]:x}" for one in three.members if one is not leader)
    assert [values(scrape(member.endpoint))["etcd_server_is_leader"] for member in three.members].count(1) == 1
