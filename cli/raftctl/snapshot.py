"""snapshot save, snapshot status."""

import contextlib
import os
import sys
from typing import TYPE_CHECKING, BinaryIO

import click

from cli.raftctl import golang
from cli.raftctl.failure import BAD_ARGUMENTS, INTERRUPTED, Failure
from cli.raftctl.flags import Command, Group, help_unless_command
from cli.raftctl.session import global_options, session

if TYPE_CHECKING:
    from raftkv.client import Client


@click.group("snapshot", cls=Group)
@global_options
def snapshot() -> None:
    """Back up a member's store, and look into a backup.

    \b
    Example:
      raftctl snapshot save backup.db
    """
    help_unless_command()


@snapshot.command("save", cls=Command)
@click.argument("words", nargs=-1, metavar="FILE")
@global_options
def save(words: tuple[str, ...]) -> None:
    """Write the store of a member to a file: all keys and their history, of one moment, while writes go on.

    The file appears under its name when it is whole, checked and on disk. There is no time limit.

    \b
    Example:
      raftctl snapshot save backup.db --endpoints localhost:2379
    """
    if len(words) != 1:
        raise Failure("snapshot save expects one argument", BAD_ARGUMENTS)
    endpoints = session().endpoints
    if len(endpoints) != 1:
        one = f"snapshot must be requested to one selected node, not multiple [{' '.join(endpoints)}]"
        raise Failure(one, INTERRUPTED)
    path = words[0]
    part = path + ".part"
    try:
        with session().client() as client, open(part, "wb", opener=_private) as file:
            _receive(client, file)
            file.flush()
            os.fsync(file.fileno())
        from cli.raftctl.snapshot_file import check_digest

        check_digest(part)
        os.rename(part, path)
    except OSError as error:
        raise Failure(f"could not write {part}: {(error.strerror or str(error)).lower()}", INTERRUPTED) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
    print(f"Snapshot saved at {path}")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _receive(client: "Client", file: BinaryIO) -> None:
    shown = sys.stderr.isatty()
    received = 0
    for piece in client.snapshot():
        file.write(piece.blob)
        received += len(piece.blob)
        if shown:
            whole = received + piece.remaining_bytes
            share = f"{golang.humanize(received)} of {golang.humanize(whole)} ({100 * received // max(whole, 1)} %)"
            print(f"\r{share:<40}", end="", file=sys.stderr, flush=True)
    if shown:
        print(file=sys.stderr)


@snapshot.command("status", cls=Command)
@click.argument("words", nargs=-1, metavar="FILE")
@global_options
def status(words: tuple[str, ...]) -> None:
    """Verify a snapshot and print its hash, revision, number of records and size.

    \b
    Example:
      raftctl snapshot status backup.db -w table
    """
    if len(words) != 1:
        raise Failure("snapshot status requires exactly one argument", BAD_ARGUMENTS)
    printer = session().printer().able("snapshot")
    from cli.raftctl.snapshot_file import examine

    printer.snapshot(examine(words[0]))
