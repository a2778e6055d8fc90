"""move-leader, defrag, alarm: what is done for a cluster's upkeep."""

import sys

import click

from cli.raftctl import golang
from cli.raftctl.endpoint import endpoints
from cli.raftctl.failure import BAD_ARGUMENTS, ERROR, Failure, text
from cli.raftctl.flags import Command, Group, help_unless_command
from cli.raftctl.progress import at
from cli.raftctl.session import global_options, session


@click.command("move-leader", cls=Command)
@click.argument("words", nargs=-1, metavar="MEMBER")
@global_options
def move_leader(words: tuple[str, ...]) -> None:
    """Hand leadership to a member, named by its id in hexadecimal. The leader must be among the endpoints.

    \b
    Example:
      raftctl move-leader 8211f1d0f64f3269 --endpoints localhost:2379,localhost:22379,localhost:32379
    """
    if len(words) != 1:
        raise Failure("move-leader command needs 1 argument", BAD_ARGUMENTS)
    try:
        target = golang.parse_uint(words[0], 16)
    except ValueError as error:
        raise Failure(str(error), BAD_ARGUMENTS) from error
    printer = session().printer().able("move_leader")
    from raftkv.client.requests import MOVE_LEADER
    from raftkv.pb.rpc_pb2 import MoveLeaderRequest

    with session().client() as client:
        for one in session().endpoints:
            status = client.status(one)
            if status.leader == status.header.member_id:
                answer = client.call(MOVE_LEADER, MoveLeaderRequest(targetID=target), endpoint=one)
                printer.move_leader(status.leader, target, answer)
                return
    raise Failure(f"no leader endpoint given at [{' '.join(session().endpoints)}]", BAD_ARGUMENTS)


@click.command("defrag", cls=Command)
@click.argument("words", nargs=-1, metavar="")
@click.option("--cluster", is_flag=True, help="All members of the cluster, at the addresses they advertise.")
@global_options
def defrag(words: tuple[str, ...], cluster: bool) -> None:
    """Give the space of what was deleted and compacted back to the file system, member by member; they go on meanwhile.

    \b
    Example:
      raftctl defrag --cluster --command-timeout 60s
    """
    from raftkv.client import ClientError
    from raftkv.client.requests import DEFRAGMENT
    from raftkv.pb.rpc_pb2 import DefragmentRequest

    failed = False
    with session().client() as client:
        targets = endpoints(cluster)
        for one in targets:
            try:
                with at("defragmenting", one, targets):
                    before = client.status(one).dbSize
                    client.call(DEFRAGMENT, DefragmentRequest(), endpoint=one)
                    after = client.status(one).dbSize
            except ClientError as error:
                print(f"Failed to defragment etcd member[{one}] ({text(error)})", file=sys.stderr)
                failed = True
            else:
                print(f"Finished defragmenting etcd member[{one}]")
                sizes = f"{golang.humanize(before)} before, {golang.humanize(after)} now"
                print(f"{one}: {sizes}", file=sys.stderr)
    if failed:
        sys.stdout.flush()
        sys.exit(ERROR)


@click.group("alarm", cls=Group)
@global_options
def alarm() -> None:
    """Tell and disarm alarms.

    \b
    Example:
      raftctl alarm list
    """
    help_unless_command()


@alarm.command("list", cls=Command)
@click.argument("words", nargs=-1, metavar="")
@global_options
def alarm_list(words: tuple[str, ...]) -> None:
    """Print the alarms that are on, and of which member.

    \b
    Example:
      raftctl alarm list
    """
    if words:
        raise Failure("alarm list command accepts no arguments", BAD_ARGUMENTS)
    printer = session().printer().able("alarms")
    from raftkv.client.requests import ALARM
    from raftkv.pb.rpc_pb2 import AlarmRequest

    with session().client() as client:
        printer.alarms(client.call(ALARM, AlarmRequest()))


@alarm.command("disarm", cls=Command)
@click.argument("words", nargs=-1, metavar="")
@global_options
def alarm_disarm(words: tuple[str, ...]) -> None:
    """Disarm all alarms and print them. NOSPACE comes back as long as the space is short: compact and defragment first.

    \b
    Example:
      raftctl alarm disarm
    """
    if words:
        raise Failure("alarm disarm command accepts no arguments", BAD_ARGUMENTS)
    printer = session().printer().able("alarms")
    from raftkv.client.requests import ALARM
    from raftkv.pb.rpc_pb2 import AlarmRequest, AlarmResponse

    disarmed = AlarmResponse()
    with session().client() as client:
        for one in client.call(ALARM, AlarmRequest()).alarms:
            request = AlarmRequest(action=AlarmRequest.DEACTIVATE, memberID=one.memberID, alarm=one.alarm)
            disarmed.alarms.extend(client.call(ALARM, request).alarms)
    printer.alarms(disarmed)
