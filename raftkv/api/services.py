"""The table of every RPC served on the client port."""

from collections.abc import Callable

from raftkv.api import cluster, lease
from raftkv.api.access import check_rules
from raftkv.api.auth import AuthService
from raftkv.api.cluster import ClusterService
from raftkv.api.election import ElectionService
from raftkv.api.guard import Limits, guarded
from raftkv.api.kv import KVService
from raftkv.api.lease import LeaseService
from raftkv.api.limits import limited
from raftkv.api.lock import LockService
from raftkv.api.maintenance import MaintenanceService
from raftkv.api.watch import WatchService
from raftkv.rates import Rates
from raftkv.rpc import Method
from raftkv.server.server import Server


def services(
    server: Server, limits: Limits, *, data_dir: str, watch_progress_seconds: float = 5.0, rates: Rates | None = None
) -> dict[str, Method]:
    """Build the method table of the etcd API; methods that are absent answer UNIMPLEMENTED."""
    table: dict[str, Method] = {}
    table.update(KVService(server, limits).methods())
    table.update(WatchService(server, progress_seconds=watch_progress_seconds).methods())
    table.update(LeaseService(server).methods())
    table.update(LockService(server, limits).methods())
    table.update(ElectionService(server, limits).methods())
    table.update(ClusterService(server).methods())
    table.update(MaintenanceService(server, data_dir).methods())
    table.update(AuthService(server, limits).methods())
    check_rules(table)
    if rates is not None:
        table = {path: limited(server, path, method, rates) for path, method in table.items()}
    return {path: guarded(server, path, method) for path, method in table.items()}


def peer_methods(cluster_id: int, member_id: int, server: Callable[[], Server | None]) -> dict[str, Method]:
    """What members ask of each other besides consensus; a member that has not started yet does not lead."""
    return {
        **lease.peer_methods(cluster_id, member_id, server),
        **cluster.peer_methods(cluster_id, member_id, server),
    }
