"""A raw watch stream to any server: every answer as it comes."""

import queue
import threading
from collections.abc import Iterator
from typing import Self

import grpc

from raftkv.pb import rpc_pb2 as pb

PATH = "/etcdserverpb.Watch/Watch"
SECONDS = 90.0

Answer = pb.WatchResponse | grpc.RpcError


class Stream:
    """One bidirectional call on a channel of its own. A thread reads what comes, unless it is told to pause."""

    def __init__(self, endpoint: str, *, metadata: tuple[tuple[str, str], ...] = (), read: bool = True) -> None:
        options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.insecure_channel(endpoint, options=options)
        self._requests: queue.SimpleQueue[pb.WatchRequest | None] = queue.SimpleQueue()
        method = self._channel.stream_stream(
            PATH,
            request_serializer=pb.WatchRequest.SerializeToString,
            response_deserializer=pb.WatchResponse.FromString,
        )
        self._call = method(iter(self._requests.get, None), metadata=metadata)
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        if read:
            self._reader.start()

    def read(self) -> None:
        """Begin to read."""
        self._reader.start()

    def _read(self) -> None:
        try:
            for answer in self._call:
                self._answers.put(answer)
        except grpc.RpcError as error:
            self._answers.put(error)

    def create(self, **fields: object) -> None:
        self.create_as(pb.WatchCreateRequest(**fields))  # type: ignore[arg-type]

    def create_as(self, request: pb.WatchCreateRequest) -> None:
        self._requests.put(pb.WatchRequest(create_request=request))

    def cancel(self, watch_id: int) -> None:
        self._requests.put(pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=watch_id)))

    def progress(self) -> None:
        self._requests.put(pb.WatchRequest(progress_request=pb.WatchProgressRequest()))

    def half_close(self) -> None:
        """Say that no more requests come."""
        self._requests.put(None)

    def next(self, seconds: float = SECONDS) -> pb.WatchResponse:
        """The next answer; a stream that ended raises what it ended with."""
        answer = self._answers.get(timeout=seconds)
        if isinstance(answer, grpc.RpcError):
            raise answer
        return answer

    def until(self, revision: int) -> Iterator[pb.WatchResponse]:
        """Answers until one that has an event at this revision or a later one, whole."""
        while True:
            answer = self.next()
            yield answer
            if answer.events and answer.events[-1].kv.mod_revision >= revision and not answer.fragment:
                return

    def waiting(self) -> int:
        """How many answers wait to be looked at."""
        return self._answers.qsize()

    def close(self) -> None:
        self._requests.put(None)
        self._call.cancel()
        self._channel.close()
        if self._reader.ident is not None:
            self._reader.join(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
