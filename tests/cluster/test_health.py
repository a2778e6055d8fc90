"""What the pages for operators say while a cluster loses its majority and gets it back."""

import http.client
import time
from pathlib import Path

from tests.support.processes import START_SECONDS, Process, cluster


def get(member: Process, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(member.endpoint, timeout=60)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def wait_for(member: Process, path: str, expected: tuple[int, str]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while (found := get(member, path)) != expected:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def test_a_member_without_a_majority_lives_but_is_not_ready(tmp_path: Path) -> None:
    well = (200, '{"health":"true","reason":""}')
    with cluster(tmp_path, 3) as three:
        last, *others = three.members
        for member in three.members:
            wait_for(member, "/health", well)
            wait_for(member, "/readyz", (200, "ok\n"))
        for member in others:
            member.kill()
        wait_for(last, "/health", (503, '{"health":"false","reason":"RAFT NO LEADER"}\n'))
        assert get(last, "/health?serializable=true") == well
        assert get(last, "/livez") == (200, "ok\n")
        assert get(last, "/readyz?exclude=linearizable_read") == (200, "ok\n")
        # This one waits as long as a request may take.
        status, body = get(last, "/readyz/linearizable_read")
        assert status == 503
        assert body.startswith("[-]linearizable_read failed: etcdserver: request timed out")
        assert body.endswith("\n\n")
        others[0].start()
        three.wait_ready(others[0])
        wait_for(last, "/health", well)
        assert get(last, "/readyz?verbose")[1].endswith("[+]linearizable_read ok\n[+]non_learner ok\nok\n")
