"""A loader's processes: room for what they read ahead, and errors of their sending threads."""

import os
import signal

import pytest
import torch
from torch.utils.data import DataLoader

from utils import workers
from utils.errors import UserError


class Unsendable:
    """An item that cannot leave the process that made it."""

    def __reduce__(self):
        raise RuntimeError("this one cannot be sent")


class Items(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return Unsendable() if index == 2 else index


def test_an_item_that_cannot_be_sent_is_an_error_where_it_is_awaited():
    received = []
    loader = DataLoader(
        Items(), batch_size=None, num_workers=1, worker_init_fn=lambda _: workers.answer_for_lost_items()
    )
    signal.alarm(60)  # it hung for ever
    try:
        with pytest.raises(RuntimeError, match="this one cannot be sent"):
            received += loader  # one by one
    finally:
        signal.alarm(0)
    assert received == [0, 1]


@pytest.mark.parametrize(
    ("processes", "count", "fits"), [(1, 2, True), (1, 3, False), (2, 1, False), (2, 0, True), (1, 0, True)]
)
def test_room_for_what_is_read_ahead(monkeypatch, processes, count, fits):
    """10 MB are free and an item has 1.5 MB: 2 workers hold 4 of them, and 2 are in use."""
    room = os.statvfs_result((4096, 4096, 0, 0, 10_000_000 // 4096, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: room)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.delenv("SLURM_STEP_ID", raising=False)
    if fits:
        workers.check_shared_memory(1_500_000, count)
    else:
        with pytest.raises(
            UserError, match=f"10.0 MB free.*--shm-size=.*use -j {2 if processes == 1 else 0}$"
        ):
            workers.check_shared_memory(1_500_000, count)


def test_no_shared_memory_to_look_at(monkeypatch):
    monkeypatch.setattr(workers, "SHARED_MEMORY", "/nowhere")  # as on macOS
    workers.check_shared_memory(1 << 60, 8)
