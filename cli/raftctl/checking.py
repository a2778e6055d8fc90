"""What `raftctl check` does: it refuses keys that are there, puts its own, measures, and removes them again."""

import asyncio
import contextlib
import re
import statistics
import sys
import urllib.request
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from cli.raftctl.failure import BAD_ARGUMENTS, BAD_FEATURE, ERROR, INVALID_INPUT, Failure
from cli.raftctl.load import Load, Outcome
from cli.raftctl.progress import Progress
from cli.raftctl.session import session

if TYPE_CHECKING:
    from ssl import SSLContext

    from raftkv.client.secure import ClientTls

MEBIBYTE = 1 << 20
RATE_SHARE = 0.9
SLOWEST_SECONDS = 0.5
STDDEV_SECONDS = 0.1
BUSY = 0.9
_MEMORY = re.compile(r"^process_resident_memory_bytes (\S+)", re.MULTILINE)


class Size(NamedTuple):
    """What a load of this name is: etcdctl's figures."""

    rate: int
    rate_clients: int
    pairs: int
    pair_clients: int


SIZES = {
    "s": Size(150, 50, 10_000, 50),
    "m": Size(1_000, 200, 100_000, 200),
    "l": Size(8_000, 500, 1_000_000, 500),
    "xl": Size(15_000, 1_000, 3_000_000, 1_000),
}
NAMES = {"small": "s", "medium": "m", "large": "l", "xLarge": "xl"}


def check_perf(load: str, duration: float, prefix: str, *, compact: bool, defragment: bool) -> None:
    """Put at the rate of a load for some seconds and print what it was like.

    Raises:
        Failure: there is no such load, or there are keys already.
    """
    size = _size(load)
    work = Load(prefix=prefix, count=max(1, int(size.rate * duration)), clients=size.rate_clients, rate=size.rate)
    outcome = _drive(work, session().endpoints)
    _clear(work.prefix, session().endpoints, compact, defragment)
    verdicts = [*_errors(outcome), *verdicts_of(outcome, size.rate)]
    for passed, text in verdicts:
        print(f"{'PASS' if passed else 'FAIL'}: {text}")
    passed = all(one for one, _ in verdicts)
    print("PASS" if passed else "FAIL")
    _end(passed)


def check_datascale(load: str, prefix: str, *, compact: bool, defragment: bool) -> None:
    """Put the keys of a load and print how much more memory the first endpoint has.

    Raises:
        Failure: there is no such load, or there are keys already.
    """
    size = _size(load)
    endpoints = session().endpoints[:1]
    work = Load(prefix=prefix, count=size.pairs, clients=size.pair_clients)
    _refuse_keys(prefix, endpoints)
    before = _resident_bytes(endpoints)
    if before is None:
        _fail_unread("before")
    print(
        f"Start data scale check for work load [{size.pairs} key-value pairs, 1024 bytes per key-value, "
        f"{size.pair_clients} concurrent clients].",
        flush=True,
    )
    outcome = _drive(work, endpoints)
    after = _resident_bytes(endpoints)
    _clear(prefix, endpoints, compact, defragment)
    if after is None:
        _fail_unread("after")
    failed = _errors(outcome)
    for _, text in failed:
        print(f"FAIL: {text}")
    if not failed:
        print(f"PASS: Approximate system memory used : {(after - before) / MEBIBYTE:.2f} MB.")
    _end(not failed)


def _size(name: str) -> Size:
    size = SIZES.get(NAMES.get(name, name))
    if size is None:
        raise Failure(f"unknown load option {name}", BAD_FEATURE)
    return size


def _drive(load: Load, endpoints: list[str]) -> Outcome:
    _refuse_keys(load.prefix, endpoints)

    progress = Progress("putting", "{:,}".format)

    async def drive() -> Outcome:
        async with session().async_client(endpoints) as client:
            return await load.run(client, lambda done: progress(done, load.count))

    try:
        outcome = asyncio.run(drive())
    finally:
        progress.end()
    if outcome.busy > BUSY:
        print("raftctl had no time left: the cluster may bear more than this", file=sys.stderr)
    return outcome


def _refuse_keys(prefix: str, endpoints: list[str]) -> None:
    with session().client(endpoints) as client:
        if client.range(prefix, prefix=True, limit=1, keys_only=True).kvs:
            raise Failure(f'prefix "{prefix}" has keys. Delete with raftctl del --prefix {prefix} first', INVALID_INPUT)


def _clear(prefix: str, endpoints: list[str], compact: bool, defragment: bool) -> None:
    from raftkv.client.requests import DEFRAGMENT
    from raftkv.pb.rpc_pb2 import DefragmentRequest

    with session().client(endpoints) as client:
        revision = client.delete(prefix, prefix=True).header.revision
        if compact:
            print(f"Compacting with revision {revision}")
            client.compact(revision, physical=True)
            print(f"Compacted with revision {revision}")
        for one in endpoints if defragment else ():
            print(f'Defragmenting "{one}"')
            client.call(DEFRAGMENT, DefragmentRequest(), endpoint=one)
            print(f'Defragmented "{one}"')


def _errors(outcome: Outcome) -> list[tuple[bool, str]]:
    return [(False, f"{message}, {count} times") for message, count in sorted(outcome.errors.items())]


def verdicts_of(outcome: Outcome, rate: int) -> list[tuple[bool, str]]:
    """Throughput, slowest request and standard deviation, in etcdctl's words."""
    if not outcome.latencies:
        return []
    reached = len(outcome.latencies) / outcome.seconds
    slowest, deviation = max(outcome.latencies), statistics.pstdev(outcome.latencies)
    fast, even = slowest <= SLOWEST_SECONDS, deviation <= STDDEV_SECONDS
    enough = reached > rate * RATE_SHARE
    return [
        (enough, f"Throughput is {reached:.0f} writes/s" if enough else f"Throughput too low: {reached:.0f} writes/s"),
        (fast, f"Slowest request took {slowest:f}s" if fast else f"Slowest request took too long: {slowest:f}s"),
        (even, f"Stddev is {deviation:f}s" if even else f"Stddev too high: {deviation:f}s"),
    ]


def _resident_bytes(endpoints: list[str]) -> float | None:
    tls = session().tls()
    scheme = "http" if tls is None else "https"
    address = endpoints[0] if "://" in endpoints[0] else f"{scheme}://{endpoints[0]}"
    context = None if tls is None else _context(tls)
    with (
        contextlib.suppress(OSError),
        urllib.request.urlopen(f"{address}/metrics", timeout=5.0, context=context) as answer,
    ):
        found = _MEMORY.search(answer.read().decode())
        return None if found is None else float(found[1])
    return None


def _context(tls: "ClientTls") -> "SSLContext":
    from raftkv.http.tls import DialTls

    dial = DialTls(certificate=tls.certificate, key=tls.key, ca=tls.ca, verify=tls.verify)
    try:
        context = dial.context()
    except ValueError as error:
        raise Failure(str(error), BAD_ARGUMENTS) from error
    # urllib speaks nothing newer.
    context.set_alpn_protocols(["http/1.1"])
    return context


def _fail_unread(when: str) -> NoReturn:
    print(f"FAIL: Could not read process_resident_memory_bytes {when} the put operations.", flush=True)
    sys.exit(ERROR)


def _end(passed: bool) -> None:
    if not passed:
        sys.stdout.flush()
        sys.exit(ERROR)
