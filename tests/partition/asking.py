"""One client's place among members, and how it writes down what it asks and what it is told."""

import random
import time
from typing import TYPE_CHECKING

from raftkv.client import AsyncClient, ClientError, NotConnected, Refused
from raftkv.client import requests as req
from raftkv.simulation.history import Operation, marked
from raftkv.simulation.revisions import LOGGED
from raftkv.status import StatusError

if TYPE_CHECKING:
    from tests.partition.recorder import Recorder

CALL_SECONDS = 1.0


class Asker:
    """A client that asks one member at a time and goes to another when it fails (`pinned`), or whose library does."""

    def __init__(self, recorder: "Recorder", number: int, *, member: int | None = None, pinned: bool) -> None:
        self.recorder = recorder
        self.number = number
        self.rng = random.Random(f"{recorder.seed}/{number}")
        endpoints = recorder.endpoints[:]
        self.rng.shuffle(endpoints)
        self._moves = member is None
        self.member = number % len(endpoints) if member is None else member
        self.pinned = pinned
        self.client = AsyncClient(endpoints, timeout=CALL_SECONDS, dial_timeout=CALL_SECONDS)

    async def ask(
        self, kind: str, rpc: req.Rpc[req.Q, req.A], request: req.Q, timeout: float = CALL_SECONDS
    ) -> Operation:
        """Do one operation, whatever comes of it."""
        recorder = self.recorder
        operation = self.begin(kind, request)
        sent = type(request).FromString(marked(request, operation.number)) if kind in LOGGED else request
        endpoint = recorder.endpoints[self.member] if self.pinned else None
        try:
            answer = await self.client.call(rpc, sent, timeout=timeout, endpoint=endpoint)
            operation.returned = time.monotonic_ns()
            operation.answer = answer.SerializeToString()
            recorder.revision = max(recorder.revision, answer.header.revision)  # type: ignore[attr-defined]
        except ClientError as error:
            self.failed(operation, error)
        return operation

    def begin(self, kind: str, request: req.Q) -> Operation:
        """Write down what is about to be asked."""
        operations = self.recorder.history.operations
        member = self.member if self.pinned else -1
        operation = Operation(len(operations) + 1, self.number, member, kind, request, time.monotonic_ns())
        operations.append(operation)
        return operation

    def failed(self, operation: Operation, error: ClientError) -> None:
        """Write down what went wrong, and go to another member."""
        operation.returned = time.monotonic_ns()
        if isinstance(error, Refused | NotConnected):
            self.recorder.definite.add(operation.number)
        operation.error = StatusError(error.code, error.message)
        if self._moves:
            self.member = self.rng.randrange(len(self.recorder.endpoints))
