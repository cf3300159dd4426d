import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from databases import open_tiny

from dataset.clip_dataset import ClipDataset
from dataset.loader import ShuffledBatches, make_loader, window_loader
from dataset.registry import open_videos
from dataset.window_dataset import WindowDataset
from utils.errors import UserError
from utils.launch import World


@pytest.mark.slow
def test_workers_and_ranks_change_nothing_but_who_draws(root):
    videos = open_tiny(root)

    def batches(workers, rank, size, batch):
        world = World(rank, size, torch.device("cpu"))
        loader = make_loader(ClipDataset(videos, 4, 2, 16, seed=0), batch, workers, world)
        loader.batch_sampler.start_at(7)
        return list(loader)

    alone, with_workers = batches(0, 0, 1, 6), batches(2, 0, 1, 6)
    for a, b in zip(alone, with_workers, strict=True):
        assert torch.equal(a["clips"], b["clips"])
        assert torch.equal(a["index"], b["index"])
    halves = [batches(0, rank, 2, 3) for rank in range(2)]
    for whole, first, second in zip(alone, *halves, strict=True):
        assert torch.equal(whole["clips"], torch.cat([first["clips"], second["clips"]]))


def test_orders_are_permutations_that_change_with_the_epoch():
    batches = ShuffledBatches(23, batch_size=4, rank=0, world_size=1, seed=0)
    orders = []
    for epoch in range(3):
        batches.start_at(epoch)
        keys = [key for batch in batches for key in batch]
        assert {e for e, _ in keys} == {epoch}
        orders.append([i for _, i in keys])
        assert len(set(orders[-1])) == 20 == 4 * len(batches)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    batches.start_at(1, videos_seen=12)
    assert [i for batch in batches for _, i in batch] == orders[1][12:]
    assert len(batches) == 2


def test_ranks_share_an_epoch_without_overlap():
    seen = []
    for rank in range(3):
        batches = ShuffledBatches(50, batch_size=4, rank=rank, world_size=3, seed=5)
        seen += [i for batch in batches for _, i in batch]
    assert len(seen) == len(set(seen)) == 48


def test_ranks_share_the_items(root):
    videos = open_tiny(root)
    dataset = WindowDataset(videos, 8, 1, 16)
    worlds = [World(rank, 4, torch.device("cpu")) for rank in range(4)]
    shares = [[item["video"] for item in window_loader(dataset, 0, world)] for world in worlds]
    assert sorted(video for share in shares for video in share) == list(range(len(videos)))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_an_epoch_goes_on_with_another_batch_size_and_number_of_ranks():
    """Two ranks see 16 of 50 videos, then three ranks of other batches those that are left, each once."""
    whole = [
        i for batch in ShuffledBatches(50, batch_size=50, rank=0, world_size=1, seed=5) for _, i in batch
    ]
    seen = []
    for rank in range(2):
        batches = ShuffledBatches(50, batch_size=4, rank=rank, world_size=2, seed=5)
        seen += [i for batch, _ in zip(batches, range(2), strict=False) for _, i in batch]
    assert sorted(seen) == sorted(whole[:16])
    for rank in range(3):
        batches = ShuffledBatches(50, batch_size=5, rank=rank, world_size=3, seed=5)
        batches.start_at(0, videos_seen=16)
        assert len(batches) == 2
        seen += [i for batch in batches for _, i in batch]
    assert sorted(seen) == sorted(whole[:46])
    batches.start_at(0, videos_seen=49)
    assert (len(batches), list(batches)) == (0, [])


def test_no_video_is_left_out_where_larger_batches_do_not_divide_the_rest():
    batches = ShuffledBatches(32, batch_size=4, rank=0, world_size=1, seed=5)
    order = [i for batch in batches for _, i in batch]
    rest = []
    for rank in range(2):
        batches = ShuffledBatches(32, batch_size=4, rank=rank, world_size=2, seed=5)
        batches.start_at(0, videos_seen=28)
        rest += [i for batch in batches for _, i in batch]
    assert rest == order[28:] + order[:4]


LOADING = """
import os, signal, sys, time
import torch
from dataset.clip_dataset import ClipDataset
from dataset.loader import make_loader
from dataset.registry import open_videos
from utils.launch import World

data = ClipDataset(open_videos("tiny-2clip", "train", 4, 2, sys.argv[1]), 4, 2, 16, seed=0)
batches = iter(make_loader(data, 2, 2, World(0, 1, torch.device("cpu"))))
next(batches)
workers = [worker.pid for worker in batches._workers]
print(*workers, flush=True)
for worker in workers:
    for number in (signal.SIGINT, signal.SIGUSR1):
        os.kill(worker, number)
if sys.argv[2] == "fails":
    raise SystemExit(3)
signal.signal(signal.SIGTERM, lambda number, frame: None)
sys.stdin.readline()
print(sum(len(batch["index"]) for batch in batches), flush=True)
"""


def test_workers_end_when_the_run_fails(root):
    done = subprocess.run(
        [sys.executable, "-c", LOADING, root, "fails"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (3, "")
    workers = [int(pid) for pid in done.stdout.split()]
    assert len(workers) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_workers_survive_a_signal_to_all_processes(root):
    """SLURM tells every process to end; the training process, which decides, still needs the workers."""
    command = [sys.executable, "-c", LOADING, root, "goes on"]
    with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True) as run:
        for pid in run.stdout.readline().split():
            os.kill(int(pid), signal.SIGTERM)
        output, errors = run.communicate("\n", timeout=60)
    assert (run.returncode, errors, output) == (0, "", "16\n")


def test_importing_the_loader_changes_nothing():
    code = (
        "import atexit, signal; hooks = []; atexit.register = hooks.append; before = "
        "signal.getsignal(signal.SIGCHLD)\nimport torch.utils.data, cv2; count = len(hooks)\n"
        "import dataset.loader; assert len(hooks) == count and signal.getsignal(signal.SIGCHLD) == before, "
        "hooks"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_fewer_videos_than_a_batch_are_refused(root):
    data = ClipDataset(open_videos("tiny-2clip", "train", 4, 2, root), 4, 2, 16, seed=0)
    with pytest.raises(
        UserError, match=r"18 videos .* batch of 10 on each of 2 processes; lower --batch_size"
    ):
        make_loader(data, 10, 0, World(0, 2, torch.device("cpu")))
