"""member list, add, remove, update, promote."""

import sys
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from cli.raftctl import golang
from cli.raftctl.failure import BAD_ARGUMENTS, Failure
from cli.raftctl.flags import Command, Group, help_unless_command
from cli.raftctl.session import global_options, session

if TYPE_CHECKING:
    from raftkv.pb import rpc_pb2

_SCHEMES = ("http", "https", "unix", "unixs")


@click.group("member", cls=Group)
@global_options
def member() -> None:
    """Look at the cluster's members, and change who they are.

    \b
    Examples:
      raftctl member list
      raftctl member add n4 --peer-urls http://10.0.0.4:2380 --learner
    """
    help_unless_command()


@member.command("list", cls=Command)
@click.argument("words", nargs=-1, metavar="")
@global_options
def member_list(words: tuple[str, ...]) -> None:
    """Print id, state, name and addresses of each member, and whether it is a learner.

    \b
    Example:
      raftctl member list -w table
    """
    printer = session().printer().able("members")
    with session().client() as client:
        printer.members(client.member_list())


@member.command("add", cls=Command)
@click.argument("words", nargs=-1, metavar="NAME")
@click.option("--peer-urls", default="", metavar="URL,…", help="Where the other members reach it.")
@click.option("--learner", is_flag=True, help="It gets the log but does not vote, until it is promoted.")
@global_options
def member_add(words: tuple[str, ...], peer_urls: str, learner: bool) -> None:
    """Add a member, then start it with what is printed. A learner costs no majority while it catches up.

    \b
    Example:
      raftctl member add n4 --peer-urls http://10.0.0.4:2380 --learner
    """
    if not words:
        raise Failure("member name not provided", BAD_ARGUMENTS)
    if len(words) > 1:
        hint = f", did you mean --peer-urls={words[1]}" if words[1].startswith("http") else ""
        raise Failure(f"too many arguments{hint}", BAD_ARGUMENTS)
    urls = _urls(peer_urls)
    printer = session().printer().able("member_added")
    with session().client() as client:
        answer = client.member_add(urls, learner=learner)
    printer.member_added(answer)
    if printer.form == "simple":
        _print_settings(words[0], urls, answer)


def _print_settings(name: str, urls: list[str], answer: "rpc_pb2.MemberAddResponse") -> None:
    members = [
        f"{name if one.ID == answer.member.ID else one.name}={url}" for one in answer.members for url in one.peerURLs
    ]
    cluster = ",".join(members)
    print(f'\nETCD_NAME="{name}"')
    print(f'ETCD_INITIAL_CLUSTER="{cluster}"')
    print(f'ETCD_INITIAL_ADVERTISE_PEER_URLS="{",".join(urls)}"')
    print('ETCD_INITIAL_CLUSTER_STATE="existing"', flush=True)
    print(
        f"start it with: raftkv --name {name} --initial-advertise-peer-urls {','.join(urls)} --initial-cluster-state "
        f"existing --initial-cluster {cluster}",
        file=sys.stderr,
    )


@member.command("remove", cls=Command)
@click.argument("words", nargs=-1, metavar="MEMBER")
@global_options
def member_remove(words: tuple[str, ...]) -> None:
    """Remove a member for good, named by its id in hexadecimal. If it runs it stops; its data is of no more use.

    \b
    Example:
      raftctl member remove 8211f1d0f64f3269
    """
    wanted = _id(words)
    printer = session().printer().able("member_removed")
    with session().client() as client:
        printer.member_removed(wanted, client.member_remove(wanted))


@member.command("update", cls=Command)
@click.argument("words", nargs=-1, metavar="MEMBER")
@click.option("--peer-urls", default="", metavar="URL,…", help="Where the other members reach it from now on.")
@global_options
def member_update(words: tuple[str, ...], peer_urls: str) -> None:
    """Change where the others reach a member; it must listen there when it is started next.

    \b
    Example:
      raftctl member update 8211f1d0f64f3269 --peer-urls http://10.0.0.9:2380
    """
    wanted = _id(words)
    urls = _urls(peer_urls)
    printer = session().printer().able("member_updated")
    with session().client() as client:
        printer.member_updated(wanted, client.member_update(wanted, urls))


@member.command("promote", cls=Command)
@click.argument("words", nargs=-1, metavar="MEMBER")
@global_options
def member_promote(words: tuple[str, ...]) -> None:
    """Let a learner vote that has caught up.

    \b
    Example:
      raftctl member promote 8211f1d0f64f3269
    """
    wanted = _id(words)
    printer = session().printer().able("member_promoted")
    with session().client() as client:
        printer.member_promoted(wanted, client.member_promote(wanted))


def _id(words: tuple[str, ...]) -> int:
    if len(words) != 1:
        raise Failure("member ID is not provided", BAD_ARGUMENTS)
    try:
        return golang.parse_uint(words[0], 16)
    except ValueError as error:
        raise Failure(f"bad member ID arg ({error}), expecting ID in Hex", BAD_ARGUMENTS) from error


def _urls(text: str) -> list[str]:
    """Peer URLs as etcdctl takes them; what it refuses is refused before anyone is asked."""
    if not text:
        raise Failure("member peer urls not provided", BAD_ARGUMENTS)
    urls = text.split(",")
    for url in urls:
        parts = urlsplit(url)
        if parts.scheme not in _SCHEMES:
            raise Failure(f"URL scheme must be http, https, unix, or unixs: {url}")
        if parts.scheme.startswith("http") and not parts.netloc.rpartition(":")[2].isdigit():
            raise Failure(f'URL address does not have the form "host:port": {url}')
        if parts.scheme.startswith("http") and parts.path:
            raise Failure(f"URL must not contain a path: {url}")
    return urls
