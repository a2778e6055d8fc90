"""Three members on this machine; Ctrl-C stops them all. One that is killed comes back after a while, as the same."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

MEMBERS = {"a": (2379, 2380), "b": (22379, 22380), "c": (32379, 32380)}
BIN = Path(sys.executable).parent
ENDPOINTS = ",".join(f"localhost:{client}" for client, _ in MEMBERS.values())
INITIAL = ",".join(f"{name}=http://127.0.0.1:{peer}" for name, (_, peer) in MEMBERS.items())
BACK_SECONDS = 10.0

NEXT = """
Three members run, data in ./cluster. In another terminal:

  export RAFTCTL_ENDPOINTS={endpoints}
  {bin}/raftctl put /registry/hello world
  {bin}/raftctl get /registry --prefix
  {bin}/raftctl endpoint status -w table      # who leads

Kill the leader and go on writing: {kills}.
It comes back after {seconds:g} seconds. Ctrl-C here stops all.
"""


class Member:
    """One member's process, in a session of its own so that Ctrl-C reaches it only through us."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ready = threading.Event()
        self.ended_at: float | None = None
        self.start()

    def start(self) -> None:
        client, peer = MEMBERS[self.name]
        command = [
            *(str(BIN / "raftkv"), "--name", self.name, "--data-dir", f"cluster/{self.name}"),
            *("--initial-cluster", INITIAL, "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}"),
            *("--listen-peer-urls", f"http://127.0.0.1:{peer}"),
            *("--listen-client-urls", f"http://127.0.0.1:{client}"),
            *("--advertise-client-urls", f"http://127.0.0.1:{client}"),
        ]
        self.ended_at = None
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        self._relay = threading.Thread(target=self._print, args=(self.process,), daemon=True)
        self._relay.start()

    def _print(self, process: "subprocess.Popen[str]") -> None:
        """Print the member's lines under its name."""
        assert process.stderr is not None
        for line in process.stderr:
            self.say(line.rstrip("\n"))
            if "clients on" in line:
                self.ready.set()

    def say(self, text: str) -> None:
        print(f"{self.name} | {text}", flush=True)

    def watch(self) -> bool:
        """Bring a killed member back; whether it is well. One that ended by itself said why, and stays down."""
        code = self.process.poll()
        if code is None:
            return True
        if code >= 0:
            self._relay.join(1)
            return False
        if self.ended_at is None:
            self.ended_at = time.monotonic()
            self.say(f"killed by {signal.Signals(-code).name}; back in {BACK_SECONDS:g} s")
        elif time.monotonic() - self.ended_at > BACK_SECONDS:
            self.start()
            self.say(f"pid {self.process.pid}")
        return True


def run(members: list[Member]) -> int:
    """Watch over the members until one gives up; the exit status."""
    told = False
    while all(member.watch() for member in members):
        if not told and all(member.ready.is_set() for member in members):
            told = True
            clients = {member: MEMBERS[member.name][0] for member in members}
            kills = ", ".join(f"kill -9 {m.process.pid} (localhost:{client})" for m, client in clients.items())
            bin_path = os.path.relpath(BIN)
            print(NEXT.format(endpoints=ENDPOINTS, bin=bin_path, kills=kills, seconds=BACK_SECONDS), flush=True)
        time.sleep(0.1)
    return 1


def main() -> int:
    """Start all, watch over them, stop all."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print("starting three members …", flush=True)
    members: list[Member] = []
    try:
        members.extend(map(Member, MEMBERS))
        return run(members)
    except KeyboardInterrupt:
        return 0
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                for member in members:
                    member.process.send_signal(number)
                for member in members:
                    member.process.wait()
                break
            except KeyboardInterrupt:
                print("stopping at once", flush=True)


if __name__ == "__main__":
    sys.exit(main())
