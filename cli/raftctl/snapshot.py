"""snapshot save, snapshot status, snapshot restore, snapshot read-etcd."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import click

from cli.raftctl import operations
from cli.raftctl.failure import BAD_ARGUMENTS, ERROR, NOT_SAVED, Failure, failure
from cli.raftctl.flags import UINT, Command, Group, help_unless_command
from cli.raftctl.printers import Snapshot
from cli.raftctl.progress import Progress
from cli.raftctl.session import global_options, session

if TYPE_CHECKING:
    from raftkv.client import Client
    from raftkv.offline import EtcdFile

F = TypeVar("F", bound=Callable[..., Any])


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
    path = words[0]
    with _saving():
        _save(path)
    print(f"Snapshot saved at {path}")


@contextlib.contextmanager
def _saving() -> Iterator[None]:
    """Give all failures but wrong flags the exit status that etcdctl has for them."""
    from raftkv.client import ClientError

    try:
        yield
    except ClientError as error:
        told = failure(error)
        told.status = NOT_SAVED
        raise told from error
    except Failure as error:
        if error.status == ERROR:
            error.status = NOT_SAVED
        raise


def _save(path: str) -> None:
    endpoints = session().endpoints
    if len(endpoints) != 1:
        raise Failure(f"snapshot must be requested to one selected node, not multiple [{' '.join(endpoints)}]")
    part = path + ".part"
    try:
        with session().client() as client, open(part, "wb", opener=_private) as file:
            _receive(client, file)
            file.flush()
            os.fsync(file.fileno())
        from raftkv.offline import check_digest

        with _refusals(), _shown("checking") as progress:
            check_digest(part, progress)
        os.rename(part, path)
    except OSError as error:
        raise Failure(f"could not write {part}: {(error.strerror or str(error)).lower()}") from error
    finally:
        # It may not be there; and who may not write it may not remove it either.
        with contextlib.suppress(OSError):
            os.unlink(part)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _receive(client: "Client", file: BinaryIO) -> None:
    received = 0
    with _shown("receiving") as progress:
        for piece in client.snapshot():
            file.write(piece.blob)
            received += len(piece.blob)
            progress(received, received + piece.remaining_bytes)


@contextlib.contextmanager
def _shown(what: str) -> Iterator[Progress]:
    progress = Progress(what)
    try:
        yield progress
    finally:
        progress.end()


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Make what cannot be done with a file the end of the command."""
    from raftkv.offline import OfflineError

    try:
        yield
    except OfflineError as error:
        raise Failure(str(error)) from error


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
    from raftkv.offline import examine

    with _refusals(), _shown("checking") as progress:
        summary = examine(words[0], progress)
    printer.snapshot(Snapshot(*summary))


def _plan_options(command: F) -> F:
    for name, shown, text in reversed(_FLAGS):
        command = click.option(f"--{name}", metavar=shown, help=text)(command)
    return command


_FLAGS = (
    ("name", "NAME", "The member's name; its entry in --initial-cluster is this member.  [default: default]"),
    ("data-dir", "DIR", "The directory to make; new or empty.  [default: ${name}.raftkv]"),
    (
        "initial-cluster",
        "NAME=URL,…",
        "All members of the new cluster.  [default: ${name}=${initial-advertise-peer-urls}]",
    ),
    ("initial-advertise-peer-urls", "URLS", "Where the others reach this member.  [default: http://localhost:2380]"),
    (
        "initial-cluster-token",
        "TEXT",
        "Keeps the new cluster apart from others with equal URLs.  [default: etcd-cluster]",
    ),
)


@snapshot.command("restore", cls=Command)
@click.argument("words", nargs=-1, metavar="FILE")
@_plan_options
@click.option("--wal-dir", default="", metavar="DIR", help="Refused: the log lies in the data directory.")
@click.option("--from-etcd", is_flag=True, help="FILE is a snapshot of etcd 3.x.")
@click.option("--skip-hash-check", is_flag=True, help="Take a file that was copied from a data directory.")
@click.option("--bump-revision", type=UINT, default=0, metavar="N", help="Let the revision be N larger.")
@click.option("--mark-compacted", is_flag=True, help="Compact to the bumped revision: old watchers begin anew.")
@global_options
def restore(
    words: tuple[str, ...],
    wal_dir: str,
    from_etcd: bool,
    skip_hash_check: bool,
    bump_revision: int,
    mark_compacted: bool,
    **flags: str | None,
) -> None:
    """Make a data directory for a member of a new cluster from a snapshot.

    Every member needs one, made of the same FILE with the same --initial-cluster and token and its own --name. Keys,
    history, revisions and leases are those of the snapshot; start the members with the same flags. With
    --bump-revision and --mark-compacted nobody who watched the old cluster takes the new one's revisions for known.

    \b
    Examples:
      raftctl snapshot restore backup.db --data-dir restored
      raftctl snapshot restore backup.db --name n1 --initial-cluster-token restored-1 \\
          --initial-cluster n1=http://10.0.0.1:2380,n2=http://10.0.0.2:2380,n3=http://10.0.0.3:2380 \\
          --initial-advertise-peer-urls http://10.0.0.1:2380
      raftctl snapshot restore --from-etcd etcd.db --data-dir migrated
    """
    if len(words) != 1:
        raise Failure("snapshot restore requires exactly one argument", BAD_ARGUMENTS)
    if wal_dir:
        raise Failure("--wal-dir is not supported: the log lies in the data directory", BAD_ARGUMENTS)
    if mark_compacted != bool(bump_revision):
        raise Failure("--mark-compacted is required with --bump-revision, and makes no sense without", BAD_ARGUMENTS)
    from raftkv import offline

    given = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items() if value is not None]
    plan = offline.Plan(
        path=words[0],
        flags=given,
        from_etcd=from_etcd,
        skip_hash_check=skip_hash_check,
        bump_revision=bump_revision,
    )
    with _refusals(), _shown("checking") as checking, _shown("writing") as writing:
        done = offline.restore(plan, checking=checking, writing=writing)
    for note in done.notes:
        print(f"Note: {note}", file=sys.stderr)
    who = f"member {done.member_id:x} of cluster {done.cluster_id:x}"
    print(f"Restored {done.keys} keys at revision {done.revision} to {done.data_dir}: {who}")


@snapshot.group("read-etcd", cls=Group)
@click.argument("file", metavar="FILE")
@click.option("--skip-hash-check", is_flag=True, help="Take a file that was copied from a data directory.")
@global_options
@click.pass_context
def read_etcd(context: click.Context, file: str, skip_hash_check: bool) -> None:
    """Look into a snapshot of etcd 3.x, without a server. FILE alone: its status.

    \b
    Examples:
      raftctl snapshot read-etcd etcd.db status -w table
      raftctl snapshot read-etcd etcd.db get /registry --prefix --keys-only
      raftctl snapshot read-etcd --skip-hash-check member/snap/db get hello --rev 3
    """
    context.meta[_FILE] = file, skip_hash_check
    if context.invoked_subcommand is None:
        _print_status()


_FILE = "cli.raftctl.snapshot.file"


@contextlib.contextmanager
def _etcd_file() -> Iterator["EtcdFile"]:
    from raftkv.offline import EtcdFile

    path, skip_hash_check = click.get_current_context().meta[_FILE]
    with _refusals():
        with _shown("checking") as progress:
            file = EtcdFile(path, skip_hash_check=skip_hash_check, progress=progress)
        with file:
            yield file


def _print_status() -> None:
    printer = session().printer().able("snapshot")
    with _etcd_file() as file:
        printer.snapshot(Snapshot(*file.summary()))


@read_etcd.command("status", cls=Command)
@click.argument("words", nargs=-1, metavar="")
@global_options
def etcd_status(words: tuple[str, ...]) -> None:
    """Print hash, revision, number of records and size, as `etcdctl snapshot status`.

    \b
    Example:
      raftctl snapshot read-etcd FILE status -w table
    """
    if words:
        raise Failure("snapshot read-etcd FILE status takes no argument", BAD_ARGUMENTS)
    _print_status()


@read_etcd.command("get", cls=Command)
@operations.get_options
@global_options
def etcd_get(count_only: bool, print_value_only: bool, **arguments: Any) -> None:
    """Print keys of the file, as `raftctl get` prints those of a cluster.

    \b
    Examples:
      raftctl snapshot read-etcd FILE get /registry --prefix --keys-only --limit 10
      raftctl snapshot read-etcd FILE get /registry/pods/default/web -w json
    """
    request = operations.range_request(count_only=count_only, **arguments)
    printer = session().printer().able("range")
    printer.choose(value_only=print_value_only, count_only=count_only)
    from raftkv.offline import range_of_file

    with _etcd_file() as file:
        printer.range(range_of_file(file, request))
