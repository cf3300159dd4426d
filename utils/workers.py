"""The processes of a loader: how they begin and end, room to read ahead, an answer for what is lost."""

import multiprocessing.queues
import os
import signal
import threading

import cv2
from torch._utils import ExceptionWrapper

from utils.errors import UserError
from utils.processes import local_processes

SHARED_MEMORY = "/dev/shm"  # macOS has none
READ_AHEAD = 2  # items of each process, DataLoader's default
IN_USE = 2  # the last item, while the next one is fetched


def check_shared_memory(item_bytes: int, workers: int) -> None:
    """Raise UserError if the items, or batches, that ``workers`` read ahead do not fit into shared memory."""
    if workers == 0 or not os.path.isdir(SHARED_MEMORY):
        return
    status = os.statvfs(SHARED_MEMORY)
    free = status.f_bavail * status.f_frsize
    size = item_bytes * local_processes()
    needed = (workers * READ_AHEAD + IN_USE) * size
    if needed > free:
        fitting = max((free // size - IN_USE) // READ_AHEAD, 0)
        raise UserError(
            f"{SHARED_MEMORY} has {free / 1e6:.1f} MB free, but -j {workers} reads up to {needed / 1e6:.1f} "
            f"MB ahead: enlarge it (docker run --shm-size={needed * 1.2 / 2**20 + 1:.0f}m) or use -j "
            f"{fitting}"
        )


def answer_for_lost_items() -> None:
    """In a process of a loader: what its thread cannot send arrives as an error where it is awaited.

    Otherwise the thread prints a traceback, and who waits for the item waits for ever.
    """

    def send_error(queue, error, item):
        number = item[0]
        # without tracebacks, which open files to show their lines: files may be what is lacking
        error.__cause__ = error.__context__ = None
        queue.put((number, ExceptionWrapper((type(error), error, None), "in a loader process")))

    multiprocessing.queues.Queue._on_queue_feeder_error = send_error


def start_worker(worker: int) -> None:
    """DataLoader worker_init_fn: one core for OpenCV too; signals are for the training process to answer.

    SLURM sends its signals to every process of a job, yet the last step and its checkpoint need the workers.
    So SIGTERM ends a worker only when it comes from the process that started it, as it does when that one
    ends.
    """
    cv2.setNumThreads(0)
    answer_for_lost_items()
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # macOS lacks it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait for SIGTERM from the parent and end with status 0, which torch takes as a proper end."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
