"""The leader is killed: how long until the next write is accepted, on raftkv and on etcd with the same timeouts.

Both run with their common defaults: a heartbeat every 100 ms, an election timeout of 1000 ms.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import grpc

from benchmarks.engines import CONTENDERS, Contender, Engine, EngineError, Member, missing, running
from benchmarks.machine import describe
from benchmarks.wire import PUT
from raftkv.pb import rpc_pb2 as pb

ATTEMPT_SECONDS = 0.25
"""After which a write that nobody answers is given up for another."""
PAUSE_SECONDS = 0.01
PATIENCE_SECONDS = 60.0
WRITE = pb.PutRequest(key=b"failover", value=b"accepted").SerializeToString()


def fail_over(engine: Engine) -> float:
    """Kill the leader and start it again; the seconds from its death until one of the others accepted a write.

    Raises:
        EngineError: none did, for long.
    """
    leader = engine.leader()
    rest = [member for member in engine.members if member is not leader]
    accepted = threading.Event()
    times: list[float] = []
    threads = [threading.Thread(target=_write, args=(member, accepted, times), daemon=True) for member in rest]
    leader.stop()
    killed = time.monotonic()
    for thread in threads:
        thread.start()
    accepted.wait(PATIENCE_SECONDS)
    accepted.set()
    for thread in threads:
        thread.join()
    if not times:
        raise EngineError(f"{engine.kind} accepts no write {PATIENCE_SECONDS:.0f} s after its leader was killed")
    leader.restart()
    return min(times) - killed


def _write(member: Member, accepted: threading.Event, times: list[float]) -> None:
    """Write through a member, again and again, until someone has been accepted."""
    while not accepted.is_set():
        with contextlib.suppress(grpc.RpcError):
            member.connection.call(PUT, WRITE, timeout=ATTEMPT_SECONDS)
            times.append(time.monotonic())
            accepted.set()
        accepted.wait(PAUSE_SECONDS)


def measure(contender: Contender, size: int, times: int, directory: Path) -> list[float]:
    """Seconds of so many failovers, one after another, in one cluster."""
    with running(contender, size, directory) as engine:
        found = []
        for number in range(times):
            found.append(fail_over(engine))
            print(f"\r{contender.name}, {size} members: {number + 1} of {times}", end="", file=sys.stderr)
        print(file=sys.stderr)
        return found


def percentile(values: list[float], share: float) -> float:
    """The value that this share of all does not exceed (nearest rank)."""
    ranked = sorted(values)
    return ranked[max(0, -int(-share * len(ranked) // 1) - 1)]


def main() -> int:
    """Measure both and print a table, or JSON."""
    parser = argparse.ArgumentParser(prog="make failover", description=__doc__)
    parser.add_argument("--times", type=int, default=50, help="how often the leader is killed [50]")
    parser.add_argument("--members", type=int, nargs="+", default=[3, 5], help="sizes of the clusters [3 5]")
    parser.add_argument("--json", action="store_true", help="print every figure")
    options = parser.parse_args()
    if (absent := missing()) is not None:
        print(f"not installed: {absent}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="raftkv-failover-") as base:
        machine = describe(Path(base))
        figures = {
            f"{one.name}, {size} members": measure(one, size, options.times, Path(base) / f"{one.name}{size}")
            for size in options.members
            for one in CONTENDERS
        }
    if options.json:
        print(json.dumps({"machine": machine, "seconds": figures}, indent=1))
        return 0
    for name, value in machine.items():
        print(f"{name}: {value}")
    for name, found in figures.items():
        print(
            f"{name}: p50 {statistics.median(found):.2f} s, p99 {percentile(found, 0.99):.2f} s, "
            f"longest {max(found):.2f} s, {len(found)} times"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
