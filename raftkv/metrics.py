"""Metrics in Prometheus' format, under etcd's names where the thing is the same.

Nothing is counted here. Servers, stores and streams keep plain numbers, which cost the hot path next to nothing, and
`Metrics` reads them when someone scrapes. A few names break the rules of the format (a counter without `_total`, a
gauge with it); they are etcd's, and dashboards ask for them.
"""

import contextlib
import os
import resource
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import cache

from google.protobuf import descriptor_pool
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from raftkv import ETCD_API_VERSION
from raftkv.disk import DiskTimes
from raftkv.histogram import Histogram
from raftkv.http import Load
from raftkv.pb import rpc_pb2
from raftkv.peer import PeerTransport
from raftkv.raft import Role
from raftkv.rpc import Method, Said
from raftkv.server.server import Server
from raftkv.server.snapshot_transfer import Transfers
from raftkv.server.times import TransferTimes
from raftkv.status import Code
from raftkv.web.checks import Checks

_COUNTERS = (
    *(b"etcd_server_health_success", b"etcd_server_health_failures"),
    *(b"etcd_server_learner_promote_successes", b"etcd_server_learner_promote_failures"),
    *(b"etcd_network_snapshot_send_success", b"etcd_network_snapshot_send_failures"),
    *(b"etcd_network_snapshot_receive_success", b"etcd_network_snapshot_receive_failures"),
)
"""Counters whose names do not say so."""

Samples = Iterable[tuple[Mapping[str, str], float]]

_KINDS = {
    (False, False): "unary",
    (False, True): "server_stream",
    (True, False): "client_stream",
    (True, True): "bidi_stream",
}
_OPERATIONS = {
    "log_in": "Authenticate",
    "lease_checkpoints": "LeaseCheckpoint",
    "member_attributes": "ClusterMemberAttrSet",
}
_CODES = {code: "OK" if code is Code.OK else code.name.title().replace("_", "") for code in Code}


class Metrics(Collector):
    """The metrics of one member."""

    def __init__(
        self,
        server: Server,
        transport: PeerTransport,
        checks: Checks,
        methods: Mapping[str, Method],
        said: Said,
        disk: DiskTimes,
        flushes: Histogram,
        transfers: Transfers,
        load: Load,
    ) -> None:
        """`methods` is the table of the client port, `said` what its clients call their version, `load` what they have
        in flight, `flushes` how long commits of the store took."""
        self._server = server
        self._transport = transport
        self._checks = checks
        self._methods = methods
        self._said = said
        self._disk = disk
        self._flushes = flushes
        self._transfers = transfers
        self._load = load
        self._scrapes = 0
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._registry.register(self)

    def render(self) -> bytes:
        """Write all metrics as text, version 0.0.4."""
        self._scrapes += 1
        text = generate_latest(self._registry)
        for name in _COUNTERS:
            # The library knows no counter whose name does not end in `_total`.
            text = text.replace(b"# TYPE %s gauge" % name, b"# TYPE %s counter" % name)
        return text

    def collect(self) -> Iterator[Metric]:
        """Read every number now."""
        yield from self._raft()
        yield from self._health()
        yield from self._storage()
        yield from self._keyspace()
        yield from self._operations()
        yield from self._watches_and_leases()
        yield from self._access()
        yield from self._promotions()
        yield from self._compactions()
        yield from self._calls()
        yield from self._limits()
        yield from self._peers()
        yield from _snapshots("send", "To", self._transfers.sent)
        yield from _snapshots("receive", "From", self._transfers.received)
        yield from self._process()

    def _process(self) -> Iterator[Metric]:
        yield _one("os_fd_limit", "gauge", "File descriptors allowed.", resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        with contextlib.suppress(OSError):
            yield _one("os_fd_used", "gauge", "File descriptors open.", len(os.listdir("/proc/self/fd")))
        space = resource.getrlimit(resource.RLIMIT_AS)[0]
        unlimited = 2.0**64 if space == resource.RLIM_INFINITY else space
        yield _one("process_virtual_memory_max_bytes", "gauge", "Virtual memory allowed.", unlimited)
        scrapes = [({"code": "200"}, self._scrapes), ({"code": "500"}, 0), ({"code": "503"}, 0)]
        yield _many("promhttp_metric_handler_requests_total", "counter", "Scrapes, by status.", scrapes)
        yield _one("promhttp_metric_handler_requests_in_flight", "gauge", "Scrapes under way.", 1)

    def _raft(self) -> Iterator[Metric]:
        server = self._server
        node = server.node
        learner = node.id not in node.conf_state.voters
        yield _one("etcd_server_has_leader", "gauge", "Whether a leader is known.", bool(node.leader))
        yield _one("etcd_server_is_leader", "gauge", "Whether this member leads.", node.role is Role.LEADER)
        yield _one("etcd_server_is_learner", "gauge", "Whether this member has no vote.", learner)
        yield _one("etcd_server_leader_changes_seen_total", "counter", "Leaders seen.", server.leadership.changes)
        yield _one("etcd_server_proposals_committed_total", "gauge", "Commit index.", node.commit_index)
        yield _one("etcd_server_proposals_applied_total", "gauge", "Applied index.", server.applier.index)
        yield _one("etcd_server_proposals_pending", "gauge", "Proposals under way.", len(server.proposals))
        yield _one("etcd_server_proposals_failed_total", "counter", "Proposals timed out.", server.proposals.failed)
        yield _one(
            "etcd_server_heartbeat_send_failures_total",
            "counter",
            "Late heartbeats.",
            server.late_heartbeats,
        )
        yield _one("etcd_server_slow_apply_total", "counter", "Applied batches that were slow.", server.slow.applies)
        yield _one("etcd_server_slow_read_indexes_total", "counter", "Rounds repeated.", server.reads.slow_rounds)
        yield _one("etcd_server_read_indexes_failed_total", "counter", "Reads timed out.", server.reads.failed)
        yield _info("etcd_server_id", "server_id", f"{node.id:x}")
        yield _info("etcd_server_version", "server_version", ETCD_API_VERSION)
        yield _info("etcd_cluster_version", "cluster_version", ETCD_API_VERSION.rpartition(".")[0])

    def _health(self) -> Iterator[Metric]:
        checks = self._checks
        yield _one("etcd_server_health_success", "counter", "Good answers of /health.", checks.health_successes)
        yield _one("etcd_server_health_failures", "counter", "Bad answers of /health.", checks.health_failures)
        last = (({"type": kind, "name": name}, well) for (kind, name), well in checks.last.items())
        yield _many("etcd_server_healthcheck", "gauge", "How a check went the last time.", last)
        results = (
            ({"type": kind, "name": name, "status": status}, count)
            for (kind, name, status), count in checks.results.items()
        )
        yield _many("etcd_server_healthchecks_total", "counter", "How often a check ended how.", results)

    def _storage(self) -> Iterator[Metric]:
        backend = self._server.store.backend
        yield _histogram("etcd_disk_wal_fsync_duration_seconds", "Syncs of the log.", self._disk.syncs)
        yield _histogram("etcd_disk_wal_write_duration_seconds", "Writes of the log.", self._disk.writes)
        yield _histogram("etcd_disk_backend_commit_duration_seconds", "Commits of the store.", self._flushes)
        yield _one("etcd_disk_wal_write_bytes_total", "gauge", "Written to the log.", self._disk.written_bytes)
        for name in ("etcd_mvcc_db_total_size_in_bytes", "etcd_debugging_mvcc_db_total_size_in_bytes"):
            yield _one(name, "gauge", "Size of the store on disk.", backend.size_bytes)
        times = self._server.times
        yield _histogram("etcd_disk_backend_defrag_duration_seconds", "Defragmentations.", times.defragment)
        yield _histogram("etcd_disk_backend_snapshot_duration_seconds", "Backups.", times.backup)
        yield _histogram("etcd_mvcc_hash_duration_seconds", "Hashes of all history.", times.hash)
        yield _histogram("etcd_mvcc_hash_rev_duration_seconds", "Hashes up to a revision.", times.hash_kv)
        yield _one("etcd_disk_defrag_inflight", "gauge", "1 while defragmenting.", self._server.defragmenting)
        yield _one(
            "etcd_server_snapshot_apply_in_progress_total",
            "gauge",
            "1 while a snapshot replaces the store.",
            self._server.installing,
        )
        yield _one(
            "etcd_mvcc_db_total_size_in_use_in_bytes",
            "gauge",
            "The part of it in use.",
            backend.size_in_use_bytes,
        )

        yield _one("etcd_server_quota_backend_bytes", "gauge", "Quota of the store.", self._server.quota.bytes)
        alarms = (
            ({"server_id": f"{one.memberID:x}", "alarm_type": rpc_pb2.AlarmType.Name(one.alarm)}, 1)
            for one in self._server.alarms.get()
        )
        yield _many("etcd_debugging_server_alarms", "gauge", "1 for each alarm that is on.", alarms)

    def _keyspace(self) -> Iterator[Metric]:
        store = self._server.store
        counts = store.counts
        operations = (("put", counts.puts), ("delete", counts.deletes), ("range", counts.ranges), ("txn", counts.txns))
        for name, count in operations:
            for prefix in ("etcd_mvcc", "etcd_debugging_mvcc"):
                yield _one(f"{prefix}_{name}_total", "counter", f"Operations of kind {name}.", count)
        removed = counts.compacted
        yield _one(
            "etcd_debugging_mvcc_db_compaction_keys_total", "counter", "Versions removed by compaction.", removed
        )
        compacted = max(store.compacted_revision, 0)
        yield _one("etcd_debugging_mvcc_keys_total", "gauge", "Live keys.", store.count((b"", None)))
        yield _one("etcd_debugging_mvcc_total_put_size_in_bytes", "gauge", "Keys and values put.", counts.put_bytes)
        yield _one("etcd_debugging_mvcc_current_revision", "gauge", "Revision of the store.", store.revision)
        yield _one("etcd_debugging_mvcc_compact_revision", "gauge", "Compacted revision.", compacted)

    def _operations(self) -> Iterator[Metric]:
        times = self._server.times
        applied = [
            ({"version": "v3", "op": _operation(name), "success": _truth(ok)}, one)
            for (name, ok), one in times.applied.items()
        ]
        yield _histograms("etcd_server_apply_duration_seconds", "Operations of the log.", applied)
        ranges = [({"success": _truth(ok)}, one) for ok, one in times.ranges.items()]
        yield _histograms("etcd_server_range_duration_seconds", "Reads of the store.", ranges)

    def _watches_and_leases(self) -> Iterator[Metric]:
        counts, leases = self._server.hub.count(), self._server.leases
        yield _one("etcd_debugging_mvcc_watch_stream_total", "gauge", "Open streams of watches.", counts.streams)
        yield _one("etcd_debugging_mvcc_watcher_total", "gauge", "Watchers.", counts.watchers)
        yield _one("etcd_debugging_mvcc_slow_watcher_total", "gauge", "Watchers that read history.", counts.behind)
        yield _one("etcd_debugging_mvcc_events_total", "counter", "Events told to watchers.", counts.events)
        yield _histogram(
            "etcd_debugging_lease_ttl_total", "Times to live of granted leases.", self._server.times.lease_ttl
        )
        yield _one("etcd_debugging_lease_granted_total", "counter", "Leases granted.", leases.store.granted_here)
        yield _one("etcd_debugging_lease_revoked_total", "counter", "Leases revoked.", leases.store.revoked_here)
        yield _one("etcd_debugging_lease_renewed_total", "counter", "Renewals, as leader.", leases.renewed)
        yield _one("etcd_debugging_server_lease_expired_total", "counter", "Expired leases.", leases.store.expired_here)

    def _promotions(self) -> Iterator[Metric]:
        made = self._server.reconfiguration
        yield _one("etcd_server_learner_promote_successes", "counter", "Promotions, as leader.", made.promoted)
        refused = (({"Reason": reason}, count) for reason, count in made.not_promoted.items())
        yield _many("etcd_server_learner_promote_failures", "counter", "Promotions refused, as leader.", refused)

    def _compactions(self) -> Iterator[Metric]:
        times, prefix = self._server.times, "etcd_debugging_mvcc_db_compaction"
        ended = 0.0
        if times.compacted_at is not None:
            ended = round(time.time() - (self._server.slow.clock() - times.compacted_at))
        yield _one(f"{prefix}_last", "gauge", "When one ended last (Unix time).", ended)
        pauses, totals = times.compaction_pause_ms, times.compaction_ms
        yield _histogram(f"{prefix}_pause_duration_milliseconds", "Turns that a compaction took.", pauses)
        yield _histogram(f"{prefix}_total_duration_milliseconds", "Compactions from end to end.", totals)

    def _access(self) -> Iterator[Metric]:
        yield _one("etcd_debugging_auth_revision", "gauge", "Changes of users and roles.", self._server.auth.revision)

    def _limits(self) -> Iterator[Metric]:
        load = self._load
        yield _one("raftkv_client_connections", "gauge", "Connections of clients.", load.connections)
        yield _one("raftkv_inflight_bytes", "gauge", "Requests under way and answers not taken.", load.bytes)
        yield _one("raftkv_client_streams", "gauge", "Calls of clients that stay open.", load.streams)
        hub = self._server.hub
        held = hub.watcher_bytes + hub.queued_bytes
        yield _one("raftkv_watch_bytes", "gauge", "Held by watchers and their queues.", held)
        refused = load.refused_calls + hub.refused
        yield _one("raftkv_refused_calls_total", "counter", "Calls and watchers that were one too many.", refused)
        yield _one(
            "raftkv_refused_connections_total", "counter", "Refused: too many are open.", load.refused_connections
        )

    def _calls(self) -> Iterator[Metric]:
        found = [(_labels(path), method.calls) for path, method in self._methods.items()]
        started = [(labels, calls.started) for labels, calls in found]
        received = [(labels, calls.received) for labels, calls in found]
        sent = [(labels, calls.sent) for labels, calls in found]
        handled = [
            ({**labels, "grpc_code": _CODES[code]}, calls.handled[code])
            for labels, calls in found
            for code in Code
            if calls.handled[code] or code is Code.OK
        ]
        versions = (
            ({"type": "unary" if unary else "stream", "client_api_version": value.decode("latin-1")}, count)
            for (unary, value), count in self._said.counts.items()
        )
        yield _many("etcd_server_client_requests_total", "counter", "Calls, by version of the client.", versions)
        yield _many("grpc_server_started_total", "counter", "Calls begun.", started)
        yield _many("grpc_server_handled_total", "counter", "Calls ended, by code.", handled)
        yield _many("grpc_server_msg_received_total", "counter", "Messages received.", received)
        yield _many("grpc_server_msg_sent_total", "counter", "Messages sent.", sent)
        times = [(labels, calls.handling) for labels, calls in found if calls.handling is not None]
        if times:
            yield _histograms("grpc_server_handling_seconds", "Time of handlers.", times)
        received_bytes = sum(calls.received_bytes for _, calls in found)
        sent_bytes = sum(calls.sent_bytes for _, calls in found)
        yield _one("etcd_network_client_grpc_received_bytes_total", "counter", "From clients.", received_bytes)
        yield _one("etcd_network_client_grpc_sent_bytes_total", "counter", "To clients.", sent_bytes)

    def _peers(self) -> Iterator[Metric]:
        transport = self._transport
        own = f"{self._server.node.id:x}"
        connected = transport.connected
        pairs = [({"Local": own, "Remote": f"{peer:x}"}, up) for peer, up in connected.items()]
        known = [(labels, True) for labels, _ in pairs]
        sent = [({"To": f"{peer:x}"}, transport.sent_bytes[peer]) for peer in connected]
        received = [({"From": f"{peer:x}"}, transport.received_bytes[peer]) for peer in connected]
        failures = [({"To": f"{peer:x}"}, transport.failures[peer]) for peer in connected]
        yield _many("etcd_network_active_peers", "gauge", "Whether there is a stream to a peer.", pairs)
        yield _many("etcd_network_known_peers", "gauge", "Peers.", known)
        lost = [({"Local": own, "Remote": f"{peer:x}"}, transport.disconnections[peer]) for peer in connected]
        yield _many("etcd_network_disconnected_peers_total", "counter", "Streams to a peer that broke.", lost)
        malformed = [({"From": f"{peer:x}"}, transport.malformed[peer]) for peer in connected]
        yield _many("etcd_network_peer_received_failures_total", "counter", "What was no message.", malformed)
        yield _many("etcd_network_peer_sent_bytes_total", "counter", "To a peer.", sent)
        yield _many("etcd_network_peer_received_bytes_total", "counter", "From a peer.", received)
        yield _many("etcd_network_peer_sent_failures_total", "counter", "Streams to a peer that ended.", failures)
        trips = (({"To": f"{peer:x}"}, transport.round_trips[peer]) for peer in connected)
        yield _histograms("etcd_network_peer_round_trip_time_seconds", "Pings on the stream to a peer.", trips)


def _snapshots(way: str, label: str, times: Mapping[int, TransferTimes]) -> Iterator[Metric]:
    """The snapshots that went to other members, or came from them."""
    found = [({label: f"{peer:x}"}, one) for peer, one in times.items()]
    name = f"etcd_network_snapshot_{way}"
    yield _many(f"{name}_success", "counter", "Snapshots that arrived.", ((at, one.successes) for at, one in found))
    yield _many(f"{name}_failures", "counter", "Those that did not.", ((at, one.failures) for at, one in found))
    yield _many(f"{name}_inflights_total", "gauge", "Those under way.", ((at, one.under_way) for at, one in found))
    took = [(at, one.seconds) for at, one in found]
    yield _histograms(f"{name}_total_duration_seconds", "Time until a snapshot was installed.", took)


def _operation(name: str) -> str:
    """An operation as etcd names it, where it has the same."""
    return _OPERATIONS.get(name) or "".join(map(str.capitalize, name.split("_")))


def _truth(value: bool) -> str:
    return "true" if value else "false"


def _one(name: str, kind: str, text: str, value: float) -> Metric:
    return _many(name, kind, text, [({}, value)])


def _info(name: str, label: str, value: str) -> Metric:
    return _many(name, "gauge", "1, under the label that says it.", [({label: value}, 1)])


def _many(name: str, kind: str, text: str, samples: Samples) -> Metric:
    counter = kind == "counter" and name.endswith("_total")
    metric = Metric(name.removesuffix("_total"), text, kind) if counter else Metric(name, text, "gauge")
    for labels, value in samples:
        metric.add_sample(name, dict(labels), float(value))
    return metric


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    return _histograms(name, text, [({}, histogram)])


def _histograms(name: str, text: str, histograms: Iterable[tuple[dict[str, str], Histogram]]) -> Metric:
    metric = HistogramMetricFamily(name, text)
    for labels, histogram in histograms:
        buckets, below = [], 0
        for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
            below += count
            buckets.append(("+Inf" if bound == float("inf") else repr(bound), float(below)))
        parts = HistogramMetricFamily(name, text, labels=tuple(labels))
        parts.add_metric(tuple(labels.values()), buckets, histogram.total)
        metric.samples += parts.samples
    return metric


@cache
def _labels(path: str) -> dict[str, str]:
    """Labels of a method; its type is the declared one: how it is served here may differ."""
    _, service, name = path.split("/")
    try:
        method = descriptor_pool.Default().FindMethodByName(f"{service}.{name}")
        kind = _KINDS[method.client_streaming, method.server_streaming]
    except KeyError:
        # Reflection has a second name, for which there is no file.
        kind = "bidi_stream"
    return {"grpc_type": kind, "grpc_service": service, "grpc_method": name}
