"""The thread for blocking work: in order, outside the loop, errors come back."""

import asyncio
import threading

from raftkv.server.worker import Worker


def test_work_runs_in_order_outside_the_loop_and_is_reported_inside() -> None:
    here = threading.current_thread()

    async def scenario() -> None:
        worker = Worker("test")
        seen: list[tuple[int, bool, bool]] = []
        done = asyncio.get_running_loop().create_future()
        for number in range(100):
            outside: list[bool] = []

            def work(outside: list[bool] = outside) -> None:
                outside.append(threading.current_thread() is not here)

            def report(error: BaseException | None, number: int = number, outside: list[bool] = outside) -> None:
                assert error is None
                seen.append((number, outside[0], threading.current_thread() is here))
                if number == 99:
                    done.set_result(None)

            worker.run(work, report)
        await done
        assert seen == [(number, True, True) for number in range(100)]
        worker.stop()

    asyncio.run(scenario())


def test_what_fails_says_so_and_the_next_runs() -> None:
    async def scenario() -> None:
        worker = Worker("test")
        reported: asyncio.Queue[BaseException | None] = asyncio.Queue()

        def fail() -> None:
            raise OSError("disk")

        worker.run(fail, reported.put_nowait)
        worker.run(lambda: None, reported.put_nowait)
        assert isinstance(await reported.get(), OSError)
        assert await reported.get() is None
        worker.stop()

    asyncio.run(scenario())


def test_a_thread_that_finds_its_loop_closed_ends() -> None:
    gate = threading.Event()

    async def scenario() -> None:
        Worker("late").run(lambda: [gate.wait(20)].clear(), lambda error: None)

    asyncio.run(scenario())
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "late"]
    gate.set()
    thread.join(20)
    assert not thread.is_alive()
