"""check perf, check datascale: puts that are counted and timed, and what they cost."""

import click

from cli.raftctl import flags
from cli.raftctl.flags import Command, Group, help_unless_command
from cli.raftctl.session import global_options


@click.group("check", cls=Group)
@global_options
def check() -> None:
    """Try what a cluster bears.

    \b
    Example:
      raftctl check perf
    """
    help_unless_command()


@check.command("perf", cls=Command)
@click.argument("words", nargs=-1, metavar="")
@click.option("--load", default="s", metavar="SIZE", help="s: 150 puts a second, m: 1,000, l: 8,000, xl: 15,000.")
@click.option("--duration", type=flags.DURATION, default="60s", metavar="DURATION", help="How long to put.")
@click.option("--prefix", default="/etcdctl-check-perf/", metavar="KEY", help="Where the keys are written.")
@click.option("--auto-compact", is_flag=True, help="Forget the history of the keys afterwards, and all before it.")
@click.option("--auto-defrag", is_flag=True, help="Defragment the endpoints afterwards.")
@global_options
def perf(
    words: tuple[str, ...], load: str, duration: float, prefix: str, auto_compact: bool, auto_defrag: bool
) -> None:
    """Put at a rate for a minute; exit status 1 when it is not reached, or a put takes longer than half a second.

    The keys are deleted afterwards. raftctl itself makes a few thousand puts a second, and says so where that was the
    bound.

    \b
    Examples:
      raftctl check perf
      raftctl check perf --load m --duration 10s --auto-compact --auto-defrag
    """
    from cli.raftctl.checking import check_perf

    check_perf(load, duration, prefix, compact=auto_compact, defragment=auto_defrag)


@check.command("datascale", cls=Command)
@click.argument("words", nargs=-1, metavar="")
@click.option(
    "--load", default="s", metavar="SIZE", help="s: 10,000 keys of 1 KiB, m: 100,000, l: 1,000,000, xl: 3,000,000."
)
@click.option("--prefix", default="/etcdctl-check-datascale/", metavar="KEY", help="Where the keys are written.")
@click.option("--auto-compact", is_flag=True, help="Forget the history of the keys afterwards, and all before it.")
@click.option("--auto-defrag", is_flag=True, help="Defragment the endpoint afterwards.")
@global_options
def datascale(words: tuple[str, ...], load: str, prefix: str, auto_compact: bool, auto_defrag: bool) -> None:
    """Put many keys and print how much memory the first endpoint takes for them. They are deleted afterwards.

    \b
    Examples:
      raftctl check datascale
      raftctl check datascale --load m --auto-compact --auto-defrag
    """
    from cli.raftctl.checking import check_datascale

    check_datascale(load, prefix, compact=auto_compact, defragment=auto_defrag)
