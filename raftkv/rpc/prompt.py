"""Unary calls without a task, on hosts that can do that (`raftkv.http.asgi.Taken`).

A task and the coroutines in it cost a call about as much as what it asks for. Here the handler runs in the turn that
brought the request, and what it waits for, if anything, calls back.
"""

import asyncio
from collections.abc import Callable, Generator
from typing import Any

from raftkv.http.asgi import CERTIFICATE_USER, Scope, Taken
from raftkv.http.load import Load
from raftkv.rpc.answers import HEADERS, OK, as_status, end, send_response
from raftkv.rpc.framing import PREFIX_BYTES, Answer, Large, frame_answer
from raftkv.rpc.held import admit
from raftkv.rpc.interrupt import Deadlines, Disconnected, Ending, deadline_of
from raftkv.rpc.method import Context, Method
from raftkv.status import Code


class Later:
    """A response that is made once a future is done; what the future raises ends the call.

    The same as a coroutine that awaits the future and then makes the response, but cheaper.
    """

    __slots__ = ("future", "make")

    def __init__(self, future: "asyncio.Future[None]", make: Callable[[], Answer]) -> None:
        self.future = future
        self.make = make

    def __await__(self) -> Generator[Any, None, Answer]:
        yield from self.future.__await__()
        return self.make()


class Prompt(Ending):
    """A unary call whose request is here."""

    __slots__ = ("_held", "_load", "_make", "_max_send_bytes", "_method", "_request")

    def __init__(self, method: Method, request: Taken, max_send_bytes: int, load: Load) -> None:
        super().__init__()
        self._load = load
        self._held = 0
        """How much of the load is this call's, while it waits."""
        self._method = method
        self._request = request
        self._max_send_bytes = max_send_bytes
        self._make: Callable[[], Answer] | None = None

    def begin(self, message: bytes, scope: Scope, timeout: bytes | None, deadlines: Deadlines) -> None:
        """Run the handler, and answer when what it waits for is done; `timeout` is the call's grpc-timeout."""
        calls = self._method.calls
        calls.started += 1
        try:
            deadline = None if timeout is None else deadline_of(timeout)
            context = Context(scope["headers"], scope.get("client"), deadline, scope.get(CERTIFICATE_USER, ""))
            calls.received += 1
            calls.received_bytes += len(message)
            answer = self._method.handler(message, context)
            if type(answer) is Later:
                self._make = answer.make
                future = answer.future
            else:
                # Of a coroutine this makes a task.
                future = answer if isinstance(answer, asyncio.Future) else asyncio.ensure_future(answer)
        except Exception as error:
            self._refuse(error)
            return
        if future.done():
            self._done(future)
            return
        self._held = size = len(message)
        self._load.bytes += size
        self._request.waits_for(future)
        self._waits_for = future
        if deadline is not None:
            deadlines.add(deadline, self)
        future.add_done_callback(self._done)

    def _done(self, future: "asyncio.Future[Any]") -> None:
        self.disarm()
        self._load.bytes -= self._held
        try:
            if future.cancelled():
                # By its deadline, or because the client is gone.
                raise self._reason or Disconnected
            result = future.result()
            response = frame_answer(result if self._make is None else self._make(), self._max_send_bytes)
            if isinstance(response, Large):
                admit(self._load, len(response))
        except Disconnected:
            self._method.calls.handled[Code.CANCELED] += 1
            self._request.over()
        except Exception as error:
            self._refuse(error)
        else:
            self._answer(response)

    def _answer(self, response: bytes | Large) -> None:
        calls = self._method.calls
        calls.sent += 1
        calls.sent_bytes += len(response) - PREFIX_BYTES
        calls.handled[Code.OK] += 1
        request = self._request
        if isinstance(response, bytes) and request.answer(HEADERS, response, OK):
            request.over()
        else:
            request.run(send_response(request.send, response, self._load))
            if isinstance(response, Large):
                # Its task counts it from its first step on; until then no other answer may find the same room.
                self._held = len(response)
                self._load.bytes += self._held
                asyncio.get_running_loop().call_soon(self._give_back)

    def _give_back(self) -> None:
        self._load.bytes -= self._held

    def _refuse(self, error: Exception) -> None:
        status = as_status(error, self._method)
        self._method.calls.handled[status.code] += 1
        self._request.run(end(self._request.send, status, started=False))
