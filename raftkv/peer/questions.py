"""Unary gRPC calls, many at once on one connection."""

import itertools

from raftkv.peer.connection import PREFIX_BYTES, Connection, Metadata, Stream
from raftkv.status import Code, StatusError

LAST_STREAM = 2**31 - 1
"""Behind this one a connection has no numbers left."""


class Questions(Connection):
    """One connection, and the questions on it."""

    def __init__(self, authority: str) -> None:
        super().__init__(authority)
        self._numbers = itertools.count(1, 2)

    async def ask(self, path: str, request: bytes, metadata: Metadata) -> bytes:
        """The answer to one question.

        Raises:
            StatusError: what was answered is an error.
            ConnectionError: there is no answer, or one that is no use.
        """
        if not self.open:
            raise ConnectionError("the connection was lost")
        number = next(self._numbers)
        self.open = number < LAST_STREAM
        question = Stream(number, self._initial_window)
        question.head = self._opening(number, path, metadata)
        question.put(request)
        question.complete = True
        self._begin(question)
        self._say(question)
        try:
            code, text = await question.ended
        finally:
            self._settle(number, "", unwanted=True)
        if code is None:
            raise ConnectionError(text)
        if code != Code.OK:
            raise StatusError(Code(code) if code in set(Code) else Code.UNKNOWN, text)
        answer = question.answer
        if not answer or answer[0] or int.from_bytes(answer[1:PREFIX_BYTES], "big") != len(answer) - PREFIX_BYTES:
            raise ConnectionError("the answer is not one message")
        return bytes(memoryview(answer)[PREFIX_BYTES:])
