"""Leases while their leader is cut off from the other members, though not from clients: never early."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raftkv.client import Client
from tests.partition.ground import Ground, terminated_in_order, until
from tests.partition.proxies import Proxies

TTL = 6


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Ground]:
    """Proxies: who may not make namespaces tests this, too."""
    with terminated_in_order():
        made = Ground(tmp_path, 3, Proxies(3, "proxies"))
        try:
            made.start()
            yield made
        finally:
            made.close()


def test_a_leader_cut_off_for_longer_than_the_lease_takes_nothing_from_it(three: Ground) -> None:
    with Client(three.endpoints, timeout=60.0) as client, client.lease(TTL) as lease:
        old = three.leading()
        client.put("kept", "v", lease=lease.id)
        asked = time.monotonic()
        client.put("let go", "v", lease=client.lease_grant(TTL).ID)
        three.isolate(old)
        cut = time.monotonic()
        new = three.wait_other_leader(old)
        with Client(three.members[new].endpoint, timeout=60.0) as others:
            until(lambda: others.get("let go") is None, "the lease that nobody renews ends")
            assert time.monotonic() - asked >= TTL
            # For the old leader, which counted on, both are over.
            assert not lease.wait_lost(max(0.0, cut + 2 * TTL - time.monotonic()))
            three.heal()
            three.wait_ready(three.members[old])
            assert not lease.wait_lost(2.5)
            lease.check()
            kept = others.get("kept")
            assert kept is not None
            assert kept.lease == lease.id
