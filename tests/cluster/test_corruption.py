"""A member whose store was changed behind its back is found and named."""

import time
from pathlib import Path

from raftkv.client import Client
from raftkv.client.requests import ALARM, DEFRAGMENT
from raftkv.mvcc.backend import REVISIONS, LmdbBackend
from raftkv.pb import rpc_pb2
from raftkv.server.corruption import divergent
from tests.support.processes import cluster


def test_who_differs_from_a_majority_is_named() -> None:
    assert divergent({1: 7, 2: 7, 3: 7}, 3) == set()
    assert divergent({1: 7, 2: 7, 3: 8}, 3) == {3}
    assert divergent({1: 8, 2: 7, 3: 7}, 3) == {1}
    assert divergent({1: 7, 2: 8}, 3) == {1, 2}


def test_a_changed_record_raises_an_alarm_of_its_member(tmp_path: Path) -> None:
    with cluster(tmp_path, 3, "--corrupt-check-time=500ms") as three:
        with Client(three.endpoints) as client:
            for number in range(10):
                client.put(f"key{number}", "value")
            assert not client.call(ALARM, rpc_pb2.AlarmRequest()).alarms
        victim = next(member for member in three.members if member is not three.leader())
        with Client(victim.endpoint) as client:
            victim_id = client.status().header.member_id
            while client.status().header.revision < 11:
                time.sleep(0.02)
            client.call(DEFRAGMENT, rpc_pb2.DefragmentRequest())  # flushes
        victim.kill()
        backend = LmdbBackend(str(victim.data / "store"))
        records = list(backend.scan(REVISIONS))
        key, record = next((key, record) for key, record in records if b"value" in record)
        backend.delete(REVISIONS, key)
        flush = backend.begin_flush()
        assert flush is not None
        flush.write()
        backend.end_flush(flush)
        backend.put(REVISIONS, key, record.replace(b"value", b"vaLue"))
        flush = backend.begin_flush()
        assert flush is not None
        flush.write()
        backend.close()
        victim.start()
        three.wait_ready(victim)
        deadline = time.monotonic() + 20.0
        with Client(three.endpoints) as client:
            while not (alarms := client.call(ALARM, rpc_pb2.AlarmRequest()).alarms):
                assert time.monotonic() < deadline, victim.log()
                time.sleep(0.1)
        assert [(one.memberID, one.alarm) for one in alarms] == [(victim_id, rpc_pb2.CORRUPT)]
