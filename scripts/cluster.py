"""Three members on this machine; Ctrl-C stops them all."""

import contextlib
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

MEMBERS = {"a": (2379, 2380), "b": (22379, 22380), "c": (32379, 32380)}
BIN = Path(sys.executable).parent
ENDPOINTS = ",".join(f"localhost:{client}" for client, _ in MEMBERS.values())
INITIAL = ",".join(f"{name}=http://127.0.0.1:{peer}" for name, (_, peer) in MEMBERS.items())

NEXT = f"""
Three members are starting, data in ./cluster. In another terminal:

  export RAFTCTL_ENDPOINTS={ENDPOINTS}
  {BIN / "raftctl"} put /registry/hello world
  {BIN / "raftctl"} get /registry --prefix
  {BIN / "raftctl"} endpoint status -w table

Kill one of them (kill -9 its pid below) and go on writing. Ctrl-C here stops all.
"""


def start(name: str) -> "subprocess.Popen[str]":
    """Start one member, in a session of its own so that Ctrl-C reaches it only through us."""
    client, peer = MEMBERS[name]
    command = [
        str(BIN / "raftkv"),
        *("--name", name, "--data-dir", f"cluster/{name}", "--initial-cluster", INITIAL),
        *("--listen-client-urls", f"http://127.0.0.1:{client}"),
        *("--advertise-client-urls", f"http://127.0.0.1:{client}"),
        *("--listen-peer-urls", f"http://127.0.0.1:{peer}"),
        *("--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}"),
    ]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


def relay(name: str, lines: IO[str]) -> None:
    """Print a member's lines under its name."""
    for line in lines:
        print(f"{name} | {line}", end="", flush=True)


def main() -> None:
    """Start all, wait for all."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print(NEXT, flush=True)
    processes = {name: start(name) for name in MEMBERS}
    for name, process in processes.items():
        print(f"{name} | pid {process.pid}", flush=True)
        assert process.stderr is not None
        threading.Thread(target=relay, args=(name, process.stderr), daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        for process in processes.values():
            process.wait()
    for process in processes.values():
        process.terminate()
    for process in processes.values():
        process.wait()


if __name__ == "__main__":
    main()
