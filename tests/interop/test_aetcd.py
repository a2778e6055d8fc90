"""aetcd, an etcd client for asyncio from PyPI, against three real members."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import Cluster, cluster

SESSION = Path(__file__).with_name("aetcd_session.py")
SCENARIOS = re.findall(r"^async def (\w+)\(clients:", SESSION.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("cluster"), 3) as running:
        yield running


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_aetcd(scenario: str, three: Cluster) -> None:
    ports = ",".join(member.endpoint.rpartition(":")[2] for member in three.members)
    # Isolated from this tree: only what is installed can be imported.
    command = [sys.executable, "-I", str(SESSION), scenario, ports]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""
