"""The `raftkv` command: parse, start a member, wait for signals.

Exit status: 0 after a clean stop, 1 when something is refused or the member died.
"""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import click

from raftkv import __version__
from raftkv.config import Config, ConfigError, environment_warnings, parse

if TYPE_CHECKING:
    from raftkv.member import Member

logger = logging.getLogger("raftkv")

WAL_USAGE = "Usage: raftkv wal dump DIR\n\n  Print a stopped member's log, a line per record; DIR is its data directory."


def main() -> None:
    """Entry point of the command."""
    argv = sys.argv[1:]
    if argv[:1] == ["wal"]:
        _wal(argv[1:])
    try:
        config = parse(argv, os.environ)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except ConfigError as error:
        _refuse(str(error))
    from raftkv.logs import set_up

    set_up(config.log_level, config.log_format)
    for warning in (*environment_warnings(os.environ), *config.warnings):
        logger.warning(warning)
    sys.exit(asyncio.run(_serve(config)))


def _refuse(problem: str) -> NoReturn:
    print(f"raftkv: {problem}", file=sys.stderr)
    sys.exit(1)


def _wal(argv: Sequence[str]) -> NoReturn:
    if argv[:1] != ["dump"] or len(argv) != 2 or argv[1].startswith("-"):
        print(WAL_USAGE)
        sys.exit(0 if argv in (["--help"], ["dump", "--help"]) else 1)
    from raftkv.wal.dump import dump

    inner = os.path.join(argv[1], "wal")
    problem = dump(inner if os.path.isdir(inner) else argv[1], sys.stdout)
    if problem is not None:
        _refuse(problem)
    sys.exit(0)


async def _serve(config: Config) -> int:
    from raftkv.member import Member
    from raftkv.server.datadir import StartError

    member = Member(config)
    try:
        await member.start()
    except StartError as error:
        _refuse(str(error))
    logger.info(
        "raftkv %s: member %s (%x) of cluster %x; clients on %s, peers on %s, data in %s",
        __version__,
        config.name,
        member.member_id,
        member.cluster_id,
        ", ".join(member.client_addresses),
        ", ".join(member.peer_addresses),
        os.path.abspath(config.data_dir),
    )
    return await _until_stopped(member)


async def _until_stopped(member: "Member") -> int:
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()

    def stop(name: str) -> None:
        if asked.is_set():
            os._exit(1)
        logger.info("%s: handing over and draining; once more to stop at once", name)
        asked.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number.name)
    died = asyncio.ensure_future(member.wait_failed())
    waiting = asyncio.ensure_future(asked.wait())
    await asyncio.wait((died, waiting), return_when=asyncio.FIRST_COMPLETED)
    if died.done():
        print(f"raftkv: stopped: {died.result()}", file=sys.stderr, flush=True)
        # Memory may be ahead of what is durable: nothing more may be said or written.
        os._exit(1)
    died.cancel()
    await member.stop()
    return 0


if __name__ == "__main__":
    main()
