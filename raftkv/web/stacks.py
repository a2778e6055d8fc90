"""Where every thread and every task stands now, as text: the first question about a server that hangs."""

import asyncio
import faulthandler
import io
import tempfile


def stacks() -> str:
    """Format the stacks of all threads and of all tasks of the running loop.

    Places only: no value of any variable is shown.
    """
    with tempfile.TemporaryFile() as file:
        # It writes to a descriptor.
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        threads = file.read().decode("utf-8", "replace")
    tasks = io.StringIO()
    for task in sorted(asyncio.all_tasks(), key=asyncio.Task.get_name):
        print(file=tasks)
        task.print_stack(file=tasks)
    return threads + tasks.getvalue()
