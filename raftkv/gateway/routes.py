"""Which URL path stands for which method: etcd's paths, derived from the service descriptors.

A path is `/v3/`, the service, and the method in lower case: KV.Put is /v3/kv/put. The object in a method's name is a
part of the path: Cluster.MemberAdd is /v3/cluster/member/add. The rest is in two small tables.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from raftkv.pb import rpc_pb2, v3election_pb2, v3lock_pb2

_FILES = (rpc_pb2, v3lock_pb2, v3election_pb2)
_WITHOUT_PATH = {"RangeStream"}
_NAMES = {
    "Watch": "",
    "Compact": "/compaction",
    "MoveLeader": "/transfer-leadership",
    "UserChangePassword": "/user/changepw",
    "UserGrantRole": "/user/grant",
    "UserRevokeRole": "/user/revoke",
    "RoleGrantPermission": "/role/grant",
    "RoleRevokePermission": "/role/revoke",
}
_SECOND_PATHS = {f"/v3/lease/{name}": f"/v3/kv/lease/{name}" for name in ("revoke", "timetolive", "leases")}
_PARTS = re.compile(r"(?:Lease|Auth(?!enticate))?(Member|User|Role)?(\w+)")


@dataclass(frozen=True, slots=True)
class Route:
    """One method: its gRPC path, its messages, and which sides stream."""

    call: str
    request: type[Message]
    response: type[Message]
    request_streams: bool
    response_streams: bool


def routes() -> dict[str, Route]:
    """Build the table of all paths."""
    table = {}
    for method in _methods():
        if method.name in _WITHOUT_PATH:
            continue
        path = _path(method)
        table[path] = route = Route(
            f"/{method.containing_service.full_name}/{method.name}",
            GetMessageClass(method.input_type),
            GetMessageClass(method.output_type),
            method.client_streaming,
            method.server_streaming,
        )
        if path in _SECOND_PATHS:
            table[_SECOND_PATHS[path]] = route
    return table


def paths_of(calls: Collection[str]) -> set[str]:
    """The URL paths that stand for these gRPC paths."""
    return {path for path, route in routes().items() if route.call in calls}


def _methods() -> Iterator[MethodDescriptor]:
    for file in _FILES:
        for service in file.DESCRIPTOR.services_by_name.values():
            yield from service.methods


def _path(method: MethodDescriptor) -> str:
    name = _NAMES.get(method.name)
    if name is None:
        parts = _PARTS.fullmatch(method.name)
        assert parts is not None, "a method has a name"
        name = "".join(f"/{part.lower()}" for part in parts.groups() if part)
    return f"/v3/{method.containing_service.name.lower()}{name}"
