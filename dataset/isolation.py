"""Work in processes of its own: a decoder that crashes takes nothing else along."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Any

import cv2

from utils.errors import UserError
from utils.memory import keep_freed_memory

MAX_CRASHES = 10  # of as many items before the first result, and it is not the items


def in_processes(
    function: Callable[[Any], Any], items: Sequence[Any], jobs: int, start_method: str | None = None
) -> Iterator[tuple[Any, Any]]:
    """(item, its result) as they are finished by ``jobs`` processes; None if it ended its process twice.

    Each process is a pool of its own, so that one that dies takes no other along: it is replaced, and its
    item is tried once more at the end. All end, in whatever they do, when this generator is closed or its
    process ends. Raises UserError where nothing but crashes comes.
    """
    context = multiprocessing.get_context(start_method)
    lifeline = context.Pipe(duplex=False)  # workers end when this process closes its end, or has died

    def start_worker() -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, context, _set_up_worker, lifeline)

    waiting = deque(items)
    idle = [start_worker() for _ in range(min(jobs, len(items)))]
    running: dict[Future, tuple[ProcessPoolExecutor, Any]] = {}
    crashes: Counter = Counter()
    finished = 0
    try:
        while waiting or running:
            while waiting and idle:
                worker, item = idle.pop(), waiting.popleft()
                try:
                    running[worker.submit(function, item)] = worker, item
                except BrokenProcessPool:  # killed while it had nothing to do
                    idle.append(start_worker())
                    waiting.appendleft(item)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                worker, item = running.pop(future)
                if not isinstance(future.exception(), BrokenProcessPool):
                    idle.append(worker)
                    finished += 1
                    yield item, future.result()
                    continue
                idle.append(start_worker())
                crashes[item] += 1
                if finished == 0 and len(crashes) > MAX_CRASHES:
                    raise UserError(f"the first {len(crashes)} videos all ended their process")
                if crashes[item] == 1:
                    waiting.append(item)
                else:
                    yield item, None
    finally:
        for end in lifeline:
            end.close()


def _set_up_worker(lifeline: Connection, other_end: Connection) -> None:
    other_end.close()  # a process that was forked has it too
    threading.Thread(target=_end_with_the_command, args=(lifeline,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)  # 1 would wait for threads that a process that was forked does not have
    keep_freed_memory()


def _end_with_the_command(lifeline: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv()  # nothing is ever sent: it returns when the other end is closed or killed
    os._exit(1)
