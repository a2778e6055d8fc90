"""make-mirror: keep the keys of one cluster in another."""

import signal
import threading
from typing import TYPE_CHECKING

import click

from cli.raftctl import flags
from cli.raftctl.failure import BAD_ARGUMENTS, Failure
from cli.raftctl.flags import Command
from cli.raftctl.operations import raw
from cli.raftctl.printers import write_line
from cli.raftctl.session import check_tls_files, credentials, global_options, make_tls, session

if TYPE_CHECKING:
    from cli.raftctl.mirroring import Mirror

TELL_SECONDS = 30.0
_PLAIN = "cli.raftctl.make_mirror.plain"


def _take_plain(context: click.Context, parameter: click.Parameter, value: bool | None) -> None:
    # Called with False where the flag says so, and with None for what was not given.
    if value is not None:
        context.meta[_PLAIN] = value


@click.command("make-mirror", cls=Command)
@click.argument("words", nargs=-1, metavar="DESTINATION")
@click.option("--prefix", default="", metavar="TEXT", help="Only keys that begin with it.")
@click.option("--dest-prefix", default="", metavar="TEXT", help="What stands for the prefix at the destination.")
@click.option("--no-dest-prefix", is_flag=True, help="Keys lose their prefix at the destination.")
@click.option("--rev", type=flags.INT, default=0, help="Only what changed from this revision on; 0: all keys first.")
@click.option("--max-txn-ops", type=flags.UINT, default=128, show_default=True, help="Of one txn at the destination.")
@click.option("--dest-user", default="", metavar="NAME[:PASSWORD]", help="Who to be at the destination.")
@click.option("--dest-password", default="", metavar="TEXT", help="The password, if --dest-user has none.")
@click.option(
    "--dest-insecure-transport",
    is_flag=True,
    default=None,
    expose_value=False,
    callback=_take_plain,
    help="false: a destination without a scheme is https://.  [default: true]",
)
@click.option("--dest-cacert", default="", metavar="FILE", help="Who vouches for an https:// destination; PEM.")
@click.option("--dest-cert", default="", metavar="FILE", help="The certificate to show it; PEM, with --dest-key.")
@click.option("--dest-key", default="", metavar="FILE", help="Its key, without a password.")
@global_options
def make_mirror(
    words: tuple[str, ...],
    prefix: str,
    dest_prefix: str,
    no_dest_prefix: bool,
    rev: int,
    max_txn_ops: int,
    dest_user: str,
    dest_password: str,
    **dest_tls: str,
) -> None:
    """Copy the keys of a cluster to DESTINATION (host:port, several with commas), and then every change, until stopped.

    Either may be raftkv or etcd. Changes of one revision stay together. After a disconnect of either side it goes on
    where it was; when it ends it tells the revision to go on with. Every 30 s it prints how many changes it has made.
    TLS with DESTINATION is by the --dest-… flags alone; --cacert, --cert and --key are for the source.
    Leases are not copied, nor are keys deleted that only the destination has.

    \b
    Examples:
      raftctl --endpoints localhost:2379 make-mirror localhost:22379
      raftctl make-mirror --prefix /registry/ --dest-prefix /backup/ 10.0.0.1:2379,10.0.0.2:2379
      raftctl make-mirror --dest-cacert ca.pem 10.0.0.1:2379
    """
    if len(words) != 1:
        raise Failure("make-mirror takes one destination argument", BAD_ARGUMENTS)
    if dest_prefix and no_dest_prefix:
        raise Failure(
            "`--dest-prefix` and `--no-dest-prefix` cannot be set at the same time, choose one", BAD_ARGUMENTS
        )
    files = {name.removeprefix("dest_"): value for name, value in dest_tls.items()}
    check_tls_files(files, "--dest-")
    target = b"" if no_dest_prefix else raw(dest_prefix or prefix)
    from cli.raftctl.mirroring import Mirror

    destination = [one.strip() for one in words[0].split(",") if one.strip()]
    # The source's password and certificate are none of the destination's business.
    there = credentials(dest_user, dest_password)
    tls = make_tls(files, plain=click.get_current_context().meta.get(_PLAIN, True))
    with session().client() as source, session().client_elsewhere(destination, there, tls) as sink:
        mirror = Mirror(source, sink, raw(prefix), target, max(1, max_txn_ops))
        _run(mirror, rev)


def _run(mirror: "Mirror", rev: int) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        # Under nohup it stays ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    ended = threading.Event()
    telling = threading.Thread(target=_tell, args=(mirror, ended), daemon=True)
    telling.start()
    try:
        mirror.run(rev)
    finally:
        ended.set()
        mirror.tell_place()


def _tell(mirror: "Mirror", ended: threading.Event) -> None:
    while not ended.wait(TELL_SECONDS):
        write_line(str(mirror.changes))
