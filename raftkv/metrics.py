"""Metrics in Prometheus' format, under etcd's names where the thing is the same.

Nothing is counted here. Servers, stores and streams keep plain numbers, which cost the hot path next to nothing, and
`Metrics` reads them when someone scrapes.
"""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from raftkv.raft import Role
from raftkv.server.server import Server
from raftkv.web.checks import Checks


class Metrics(Collector):
    """The metrics of one member."""

    def __init__(self, server: Server, checks: Checks) -> None:
        self._server = server
        self._checks = checks
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._registry.register(self)

    def render(self) -> bytes:
        """Write all metrics as text, version 0.0.4."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """Read every number now."""
        yield from self._raft()
        yield from self._watch()

    def _raft(self) -> Iterable[Metric]:
        server = self._server
        node = server.node
        yield _gauge("etcd_server_has_leader", "Whether a leader is known.", bool(node.leader))
        yield _gauge("etcd_server_is_leader", "Whether this member leads.", node.role is Role.LEADER)

    def _watch(self) -> Iterable[Metric]:
        counts = self._server.hub.count()
        prefix = "etcd_debugging_mvcc_"
        yield _gauge(f"{prefix}watch_stream_total", "Open watch streams.", counts.streams)
        yield _gauge(f"{prefix}watcher_total", "Watchers.", counts.watchers)
        yield _gauge(f"{prefix}slow_watcher_total", "Watchers that read history.", counts.behind)
        yield _counter(f"{prefix}events_total", "Events told to watchers.", counts.events)


def _counter(name: str, text: str, value: float) -> Metric:
    metric = Metric(name.removesuffix("_total"), text, "counter")
    metric.add_sample(name, {}, float(value))
    return metric


def _gauge(name: str, text: str, value: float) -> Metric:
    metric = Metric(name, text, "gauge")
    metric.add_sample(name, {}, float(value))
    return metric
