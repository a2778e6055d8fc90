"""Somebody who adds roles and takes them away again: of all that is done to users it is what costs no passwords."""

import asyncio
import random
from functools import partial

from google.protobuf.message import Message

from raftkv.pb import rpc_pb2
from raftkv.simulation.cluster import Cluster
from raftkv.status import StatusError

_AUTH = "/etcdserverpb.Auth/"
_ENDPOINT = -252
PAUSE_SECONDS = 0.7
ROLES = 3


class RoleKeeper:
    """Changes roles until `stop`; what comes of it is compared between the members."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._rng = random.Random(f"{cluster.options.seed}/role-keeper")
        self._caller = cluster.caller(_ENDPOINT)
        self._stopping = False

    def stop(self) -> None:
        """Change nothing any more."""
        self._stopping = True

    async def run(self) -> None:
        """Go on until the end."""
        rng = self._rng
        while not self._stopping:
            await asyncio.sleep(rng.expovariate(1 / PAUSE_SECONDS))
            role = f"role {rng.randrange(ROLES)}"
            # Often both: then nothing is left that tells whether it was done once.
            which = rng.random()
            if which < 0.7:
                await self._call("RoleAdd", rpc_pb2.AuthRoleAddRequest(name=role))
            if which > 0.4:
                await self._call("RoleDelete", rpc_pb2.AuthRoleDeleteRequest(role=role))

    async def _call(self, name: str, request: Message) -> None:
        number = self._cluster.any_place(self._rng)
        process = partial(self._cluster.process, number)
        try:
            await self._caller.call(number, process, _AUTH + name, [request.SerializeToString()], 3.0)
        except (StatusError, ConnectionError):
            # It is there already, or not there, or nobody knows.
            return
