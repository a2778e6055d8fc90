"""The `raftkv` command: parse, start a member, wait for signals.

Exit status: 0 after a clean stop, 1 when something is refused or the member died.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

import click

from raftkv.config import Config, ConfigError
from raftkv.flags import environment_warnings, parse
from raftkv.form import VERSION
from raftkv.security import tls_warnings

if TYPE_CHECKING:
    from raftkv.member import Member

logger = logging.getLogger("raftkv")

WAL_USAGE = (
    "Usage: raftkv wal dump DIR\n\n  Print a stopped member's log, a line per record; DIR is its data directory."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, by default those of the process; its exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["wal"]:
        return _wal(arguments[1:])
    if arguments[:1] == ["sim"]:
        from raftkv.simulation.command import main as simulate

        return simulate(arguments[1:])
    try:
        config = parse(arguments, os.environ)
    except click.exceptions.Exit as error:
        return error.exit_code
    except ConfigError as error:
        return _refuse(str(error))
    from raftkv.logs import set_up

    set_up(config.log_level, config.log_format)
    for warning in (*environment_warnings(os.environ), *config.warnings, *tls_warnings(config)):
        logger.warning(warning)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_run(config))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where it is installed: a request alone costs a fifth less; None is asyncio's own."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        return None
    return new_event_loop


def _say(line: str) -> None:
    print(f"raftkv: {line}", file=sys.stderr, flush=True)


def _refuse(problem: str) -> int:
    _say(problem)
    return 1


def _wal(arguments: Sequence[str]) -> int:
    if any(argument in ("-h", "--help") for argument in arguments):
        print(WAL_USAGE)
        return 0
    if len(arguments) != 2 or arguments[0] != "dump":
        return _refuse("usage: raftkv wal dump DIR")
    from raftkv.wal.dump import dump

    inner = os.path.join(arguments[1], "wal")
    try:
        problem = dump(inner if os.path.isdir(inner) else arguments[1], sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has seen enough; nothing more can be printed, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        problem = f"cannot read {error.filename}: {(error.strerror or str(error)).lower()}"
    return 0 if problem is None else _refuse(problem)


async def _run(config: Config) -> int:
    from raftkv.member import Member
    from raftkv.server.datadir import StartError, disk_error

    asked = _stop_event()
    member = Member(config)
    starting = asyncio.ensure_future(member.start())
    await _first(starting, asked)
    if not starting.done():
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError, StartError, OSError):
            await starting
        return 0
    try:
        starting.result()
    except StartError as error:
        return _refuse(" ".join(str(error).split()))
    except OSError as error:
        return _refuse(" ".join(str(disk_error(error, config.data_dir)).split()))
    _tune_interpreter()
    logger.info(
        "raftkv %s: member %s (%x) of cluster %x; clients on %s, peers on %s, data in %s",
        VERSION,
        config.name,
        member.member_id,
        member.cluster_id,
        ", ".join(member.client_addresses),
        ", ".join(member.peer_addresses),
        os.path.abspath(config.data_dir),
    )
    return await _until_stopped(member, asked)


def _tune_interpreter() -> None:
    """Settings of the whole process, which are the command's business and not a member's that others embed.

    A full garbage collection stands the loop still for as long as there are objects: with a million of them for longer
    than an election takes. So each object is looked at once in full: what survives is set aside, like what is there at
    the start. A thread that comes back from fdatasync waits for the interpreter lock no longer than the interval.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 20)
    gc.callbacks.append(_set_aside)
    sys.setswitchinterval(0.0005)


def _set_aside(phase: str, info: dict[str, int]) -> None:
    if phase == "stop" and info["generation"] == 2:
        gc.freeze()


async def _until_stopped(member: "Member", asked: "asyncio.Future[None]") -> int:
    died = asyncio.ensure_future(member.wait_failed())
    removed = asyncio.ensure_future(member.wait_removed())
    await _first(died, asked, removed)
    if died.done():
        _die(died.result())
    # The disk may fail on the way out, too.
    stopping = asyncio.ensure_future(member.stop())
    await _first(died, stopping)
    if not stopping.done():
        _die(died.result())
    died.cancel()
    stopping.result()
    logger.info("stopped")
    if removed.done():
        _say(f"member {member.member_id:x} has been permanently removed from the cluster; its data is of no more use")
    removed.cancel()
    return 0


def _stop_event() -> "asyncio.Future[None]":
    """Done when SIGTERM or SIGINT arrives; the second one ends the process."""
    loop = asyncio.get_running_loop()
    asked: asyncio.Future[None] = loop.create_future()

    def stop(name: str) -> None:
        if asked.done():
            os._exit(1)
        logger.info("%s: handing over and draining; once more to stop at once", name)
        asked.set_result(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number.name)
    return asked


async def _first(*futures: "asyncio.Future[None] | asyncio.Future[BaseException]") -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


def _die(reason: BaseException) -> NoReturn:
    """End the process now: memory may be ahead of what is durable, so nothing more may be said or written."""
    _refuse(f"stopped: {' '.join(str(reason).split()) or type(reason).__name__}")
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
