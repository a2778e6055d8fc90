"""A part of test_python_clients.py, with python-etcd3 as users have it: `etcd3_session.py PART PORTS ARGUMENT`.

A program of its own, run with PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=python: etcd3's generated code is older than
protobuf's C implementation accepts, and it registers the same messages as raftkv does. Nothing of raftkv is imported
here. It exits with 0 when all is as it should be.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import etcd3
import grpc

TIMEOUT_SECONDS = 5
REFRESH_SECONDS = 0.3
ROUNDS = 5
FAILED = (grpc.RpcError, etcd3.Etcd3Exception, ValueError)
"""What a client raises when its member is gone; the last when its channel was closed under a watch."""


@contextlib.contextmanager
def connected(port: str) -> Iterator[etcd3.Etcd3Client]:
    client = etcd3.client("127.0.0.1", int(port), timeout=TIMEOUT_SECONDS)
    try:
        yield client
    finally:
        # Ends the thread that would ask a dead member for watches without pause.
        client.close()


def anywhere(ports: list[str], ask: Callable[[etcd3.Etcd3Client], Any]) -> Any:
    """Ask one member after another until one answers."""
    while True:
        for port in ports:
            with contextlib.suppress(*FAILED), connected(port) as client:
                return ask(client)
        time.sleep(0.1)


def follow(ports: list[str], first: str) -> None:
    """Watch `w/` from a revision to the value "end", once beginning at each member; print what is heard."""
    run_all([threading.Thread(target=follow_one, args=(ports, place, int(first))) for place in range(len(ports))])


def follow_one(ports: list[str], watcher: int, revision: int) -> None:
    place = watcher
    while True:
        with contextlib.suppress(*FAILED), connected(ports[place % len(ports)]) as client:
            events, _ = client.watch_prefix("w/", start_revision=revision, prev_kv=True)
            for event in events:
                revision = event.mod_revision + 1
                say("event", watcher, event.mod_revision, event.value.decode(), event.prev_value.decode())
                if event.value == b"end":
                    return
        say("resumed", watcher)
        place += 1
        time.sleep(0.1)


def lease(ports: list[str], ttl: str) -> None:
    """Keep a key's lease alive until stdin ends; then it goes, not before its time."""
    granted = anywhere(ports, lambda client: client.lease(int(ttl)).id)
    put = anywhere(ports, lambda client: client.put("etcd3/leased", "1", lease=granted).header.revision)
    say("held")
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    last = False
    while not last:
        last = ended.wait(REFRESH_SECONDS)
        sent = time.monotonic()
        [answer] = anywhere(ports, lambda client: list(client.refresh_lease(granted)))
        assert int(ttl) == answer.TTL, "the lease was lost"
    value, kv = anywhere(ports, lambda client: client.get("etcd3/leased"))
    assert (value, kv.version, kv.create_revision) == (b"1", 1, put)
    while anywhere(ports, lambda client: client.get("etcd3/leased"))[0] is not None:
        time.sleep(0.1)
    assert time.monotonic() - sent >= int(ttl), "the lease ended early"
    assert anywhere(ports, lambda client: client.get_lease_info(granted)).TTL == -1


def lock(ports: list[str], journal: str) -> None:
    """Two workers hold the lock some times each, and write into the journal when they come and go."""
    run_all([threading.Thread(target=hold_often, args=(ports, place, journal)) for place in range(2)])


def hold_often(ports: list[str], place: int, journal: str) -> None:
    held = 0
    while held < ROUNDS:
        place += 1
        with contextlib.suppress(*FAILED), connected(ports[place % len(ports)]) as client:
            while held < ROUNDS:
                held += hold_once(ports, client, journal)


def hold_once(ports: list[str], client: etcd3.Etcd3Client, journal: str) -> bool:
    """Return whether the lock was held. Whatever fails, it is not held afterwards."""
    held = client.lock("shared", ttl=60)
    try:
        if not held.acquire(timeout=1):
            return False
        write(journal, "in etcd3")
        time.sleep(0.05)
        write(journal, "out etcd3")
        assert held.release()
    except FAILED:
        if held.lease is not None:
            anywhere(ports, lambda other: revoke(other, held.lease.id))
        raise
    return True


def revoke(client: etcd3.Etcd3Client, lease_id: int) -> None:
    """End a lease, if it is there."""
    if client.get_lease_info(lease_id).TTL != -1:
        client.revoke_lease(lease_id)


def write(journal: str, line: str) -> None:
    with open(journal, "a", encoding="ascii") as file:
        file.write(line + "\n")


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def run_all(threads: list[threading.Thread]) -> None:
    failures: list[BaseException | None] = []
    own = set(threads)
    # etcd3's own threads fail when their channel is closed; that is how they end.
    threading.excepthook = lambda failed: failures.append(failed.exc_value) if failed.thread in own else None
    for thread in threads:
        thread.daemon = True
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0] or AssertionError


if __name__ == "__main__":
    part, members, argument = sys.argv[1:]
    {"follow": follow, "lease": lease, "lock": lock}[part](members.split(","), argument)
