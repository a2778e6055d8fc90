"""Each member in a network namespace of its own, joined by a bridge; iptables drops what a fault takes away.

Everything is named after this process, so that what a run left that was killed itself is found and removed by the next.
"""

import contextlib
import os
import re
import subprocess
from pathlib import Path

from tests.support.processes import Process

CLIENTS = -1
"""The place from which clients call: the namespace of the tests."""
CLIENT_PORT, PEER_PORT = 2379, 2380
_TAG = "rkv"
_NET = "198.18"
"""Of the block that is kept for measurements of networks (RFC 2544)."""


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


class Namespaces:
    """A bridge, and a namespace for each member and a newcomer.

    Invariant: `close` removes all of it, in whatever state it is.
    """

    kind = "namespaces"

    def __init__(self, size: int) -> None:
        """
        Raises:
            OSError: the system does not permit it, or lacks a program.
        """
        self._bridge = f"{_TAG}{os.getpid()}"
        self._size = size
        self._names = [f"{self._bridge}-{number}" for number in range(size + 1)]
        try:
            _remove_leftovers()
            self._build()
        except BaseException:
            self.close()
            raise

    def _build(self) -> None:
        _run("ip", "link", "add", self._bridge, "type", "bridge")
        taken = _run("ip", "-4", "-o", "addr")
        self._net = next(f"{_NET}.{third}" for third in range(256) if f" {_NET}.{third}." not in taken)
        _run("ip", "addr", "add", f"{self._net}.254/24", "dev", self._bridge)
        _run("ip", "link", "set", self._bridge, "up")
        for number, name in enumerate(self._names):
            outside = self._outside(number)
            _run("ip", "netns", "add", name)
            _run("ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", name)
            _run("ip", "link", "set", outside, "master", self._bridge, "up")
            _run("ip", "-n", name, "addr", "add", f"{self._address(number)}/24", "dev", "eth0")
            _run("ip", "-n", name, "link", "set", "lo", "up")
            _run("ip", "-n", name, "link", "set", "eth0", "up")
            self._filter(number, "-F")

    def _outside(self, number: int) -> str:
        return f"{_TAG}{number}v{os.getpid()}"

    def _address(self, place: int) -> str:
        return f"{self._net}.{254 if place == CLIENTS else place + 1}"

    def _filter(self, number: int, *rule: str) -> None:
        _run("ip", "netns", "exec", self._names[number], "iptables", "-w", *rule)

    def members(self, directory: Path, *flags: str) -> list[Process]:
        """A process for each namespace; the last one is no member yet."""
        names = [f"m{number}" for number in range(len(self._names))]
        urls = [f"{name}=http://{self._address(number)}:{PEER_PORT}" for number, name in enumerate(names[: self._size])]
        return [
            Process(
                name,
                directory,
                CLIENT_PORT,
                PEER_PORT,
                ",".join(urls),
                *flags,
                host=self._address(number),
                # It becomes the member, which dies with the tests whatever ends them.
                prefix=["setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", self._names[number]],
            )
            for number, name in enumerate(names)
        ]

    def cut(self, source: int, target: int) -> None:
        """Drop packets from source to target; the other direction is not touched."""
        if target == CLIENTS:
            self._filter(source, "-A", "OUTPUT", "-d", self._address(target), "-j", "DROP")
        else:
            self._filter(target, "-A", "INPUT", "-s", self._address(source), "-j", "DROP")

    def lose(self, share: float) -> None:
        """Lose this share of all packets that reach a member, whatever is cut or healed besides."""
        dice = ("-m", "statistic", "--mode", "random", "--probability", str(share))
        for number in range(len(self._names)):
            self._filter(number, "-t", "mangle", "-F", "PREROUTING")
            if share:
                self._filter(number, "-t", "mangle", "-A", "PREROUTING", *dice, "-j", "DROP")

    def heal(self) -> None:
        """Cut nothing any more."""
        for number in range(len(self._names)):
            self._filter(number, "-F")

    def close(self) -> None:
        """Remove everything. Members must have ended."""
        for number, name in enumerate(self._names):
            # A namespace is taken down some time after its removal, and leaves its end of the link here until then.
            with contextlib.suppress(OSError):
                _run("ip", "link", "del", self._outside(number))
            with contextlib.suppress(OSError):
                _run("ip", "netns", "del", name)
        with contextlib.suppress(OSError):
            _run("ip", "link", "del", self._bridge)


def _remove_leftovers() -> None:
    """Remove what runs left whose process is gone; their members died with them."""
    for kind, listing, pattern in (
        ("netns", _run("ip", "netns", "list"), rf"^({_TAG}(\d+)-\d+)\b"),
        ("link", _run("ip", "-o", "link", "show", "type", "bridge"), rf"^\d+: ({_TAG}(\d+)):"),
    ):
        for name, pid in re.findall(pattern, listing, re.MULTILINE):
            if not Path(f"/proc/{pid}").exists():
                with contextlib.suppress(OSError):
                    _run("ip", kind, "del", name)
