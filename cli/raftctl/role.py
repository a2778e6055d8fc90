"""role add, delete, get, list, grant-permission, revoke-permission."""

import click

from cli.raftctl.failure import BAD_ARGUMENTS, Failure
from cli.raftctl.flags import Command, Group, help_unless_command
from cli.raftctl.session import global_options, session

KINDS = {"read": 0, "write": 1, "readwrite": 2}


@click.group("role", cls=Group)
@global_options
def role() -> None:
    """Make roles: rights to read or write keys, for users to have.

    \b
    Examples:
      raftctl role add readers
      raftctl role grant-permission readers read /registry/ --prefix
      raftctl role get readers
    """
    help_unless_command()


def _one(words: tuple[str, ...], name: str) -> str:
    if len(words) != 1:
        raise Failure(f"role {name} command requires role name as its argument", BAD_ARGUMENTS)
    return words[0]


def _range(words: tuple[str, ...], *, prefix: bool, from_key: bool) -> tuple[bytes, bytes]:
    """Key and range_end of what is named behind the role."""
    from raftkv.client.requests import prefix_end

    key, *ends = (word.encode("utf-8", "surrogateescape") for word in words)
    if prefix and from_key:
        raise Failure("--from-key and --prefix flags are mutually exclusive", BAD_ARGUMENTS)
    for flag, given in (("prefix", prefix), ("from-key", from_key)):
        if given and ends:
            raise Failure(f"unexpected endkey argument with --{flag} flag", BAD_ARGUMENTS)
    if from_key or (prefix and not key):
        return key or b"\0", b"\0"
    return key, prefix_end(key) if prefix else ends[0] if ends else b""


@role.command("add", cls=Command)
@click.argument("words", nargs=-1, metavar="NAME")
@global_options
def role_add(words: tuple[str, ...]) -> None:
    """Make a role that permits nothing yet.

    \b
    Example:
      raftctl role add readers
    """
    name = _one(words, "add")
    from raftkv.client import access
    from raftkv.pb import rpc_pb2

    printer = session().printer().able("changed")
    with session().client() as client:
        printer.changed(client.call(access.ROLE_ADD, rpc_pb2.AuthRoleAddRequest(name=name)), f"Role {name} created")


@role.command("delete", cls=Command)
@click.argument("words", nargs=-1, metavar="NAME")
@global_options
def role_delete(words: tuple[str, ...]) -> None:
    """Delete a role, and take it from all users.

    \b
    Example:
      raftctl role delete readers
    """
    name = _one(words, "delete")
    from raftkv.client import access
    from raftkv.pb import rpc_pb2

    printer = session().printer().able("changed")
    request = rpc_pb2.AuthRoleDeleteRequest(role=name)
    with session().client() as client:
        printer.changed(client.call(access.ROLE_DELETE, request), f"Role {name} deleted")


@role.command("get", cls=Command)
@click.argument("words", nargs=-1, metavar="NAME")
@global_options
def role_get(words: tuple[str, ...]) -> None:
    """Print what a role permits.

    \b
    Example:
      raftctl role get readers
    """
    name = _one(words, "get")
    from raftkv.client import access
    from raftkv.pb import rpc_pb2

    printer = session().printer().able("role_get")
    with session().client() as client:
        printer.role_get(name, client.call(access.ROLE_GET, rpc_pb2.AuthRoleGetRequest(role=name)))


@role.command("list", cls=Command)
@click.argument("words", nargs=-1, metavar="")
@global_options
def role_list(words: tuple[str, ...]) -> None:
    """Print the names of all roles.

    \b
    Example:
      raftctl role list
    """
    if words:
        raise Failure("role list command requires no arguments", BAD_ARGUMENTS)
    from raftkv.client import access
    from raftkv.pb import rpc_pb2

    printer = session().printer().able("role_list")
    with session().client() as client:
        printer.role_list(client.call(access.ROLE_LIST, rpc_pb2.AuthRoleListRequest()))


@role.command("grant-permission", cls=Command)
@click.argument("words", nargs=-1, metavar="NAME read|write|readwrite KEY [END]")
@click.option("--prefix", is_flag=True, help="All keys that begin with KEY.")
@click.option("--from-key", is_flag=True, help="KEY and all keys behind it.")
@global_options
def role_grant_permission(words: tuple[str, ...], prefix: bool, from_key: bool) -> None:
    """Let a role read or write a key, the keys from KEY up to END, or others by flag.

    \b
    Examples:
      raftctl role grant-permission readers read /registry/ --prefix
      raftctl role grant-permission keeper readwrite a c
    """
    if len(words) < 3:
        text = "role grant command requires role name, permission type, and key [endkey] as its argument"
        raise Failure(text, BAD_ARGUMENTS)
    name, kind, *rest = words
    if kind.lower() not in KINDS:
        raise Failure(f"invalid permission type: {kind}", BAD_ARGUMENTS)
    key, range_end = _range(tuple(rest), prefix=prefix, from_key=from_key)
    from raftkv.client import access
    from raftkv.pb import rpc_pb2

    printer = session().printer().able("changed")
    request = rpc_pb2.AuthRoleGrantPermissionRequest(name=name)
    request.perm.key, request.perm.range_end = key, range_end
    request.perm.permType = KINDS[kind.lower()]  # type: ignore[assignment]
    with session().client() as client:
        printer.changed(client.call(access.ROLE_GRANT_PERMISSION, request), f"Role {name} updated")


@role.command("revoke-permission", cls=Command)
@click.argument("words", nargs=-1, metavar="NAME KEY [END]")
@click.option("--prefix", is_flag=True, help="That on all keys that begin with KEY.")
@click.option("--from-key", is_flag=True, help="That on KEY and all keys behind it.")
@global_options
def role_revoke_permission(words: tuple[str, ...], prefix: bool, from_key: bool) -> None:
    """Take from a role what was granted on exactly this range.

    \b
    Example:
      raftctl role revoke-permission readers /registry/ --prefix
    """
    if len(words) < 2:
        text = "role revoke-permission command requires role name and key [endkey] as its argument"
        raise Failure(text, BAD_ARGUMENTS)
    name, *rest = words
    key, range_end = _range(tuple(rest), prefix=prefix, from_key=from_key)
    from raftkv.client import access
    from raftkv.pb import rpc_pb2

    printer = session().printer().able("permission_revoked")
    request = rpc_pb2.AuthRoleRevokePermissionRequest(role=name, key=key, range_end=range_end)
    with session().client() as client:
        response = client.call(access.ROLE_REVOKE_PERMISSION, request)
        # As it was written: etcdctl does not say what an empty prefix stands for.
        shown = rest[0].encode("utf-8", "surrogateescape")
        printer.permission_revoked(name, shown, range_end, response)
