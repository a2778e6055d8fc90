"""etcd3gw, OpenStack's client of etcd's JSON gateway: its own tests, all of them, pass on a real member.

They put, get and delete, compare and swap, watch keys and prefixes (with answers of some hundred kilobytes), and use
leases and locks. Most of their time is spent asleep.
"""

import re
import subprocess
import sys
from pathlib import Path

from tests.cli.servers import serve

SUITE = Path(__file__).with_name("etcd3gw_suite.py")
TESTS = 23
"""In etcd3gw 2.7.0."""


def test_its_own_tests_pass(tmp_path: Path) -> None:
    with serve("raftkv", tmp_path / "raftkv") as endpoint:
        # Isolated from this tree: only what is installed can be imported.
        command = [sys.executable, "-I", str(SUITE), endpoint.rpartition(":")[2]]
        done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    [ran] = re.findall(r"^Ran (\d+) tests", done.stderr, re.MULTILINE)
    assert int(ran) >= TESTS
