"""Processes and devices: one process, torchrun, torch.distributed.launch or SLURM, on GPUs or a CPU."""

import argparse
import contextlib
import functools
import gc
import json
import os
import re
import signal
import socket
import sys
import threading
import traceback
import warnings
import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # its functions keep the group that they find when imported: none yet
from torch.distributed.rendezvous import rendezvous

from utils.cores import available_cores
from utils.errors import UserError
from utils.log import log, start_logging
from utils.memory import keep_freed_memory
from utils.processes import check_rank, in_slurm_step, local_processes, process_ranks

SECONDS_OF_SILENCE = 10
LOST_PROCESS = re.compile(r"gloo|nccl|closed by peer|connection reset|timed out|heartbeat", re.IGNORECASE)
MAY_DIFFER = ("rank", "local_rank", "gpu", "dist_url", "workers")  # options of one process of a run


@dataclass(frozen=True)
class World:
    """This process's place among all of them."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def __str__(self) -> str:
        processes = "process" if self.size == 1 else "processes"
        return f"{self.size} {processes} ({self.device})"


def _ranks(args: argparse.Namespace) -> tuple[int, int, int]:
    """(rank, world size, local rank), by the launcher's environment, else the options, else one process."""
    rank, size, local_rank = process_ranks()
    local_rank = local_rank or args.local_rank or 0
    if size == 1 and args.world_size > 1:
        if args.rank < 0:
            raise UserError(
                f"--world-size {args.world_size} needs --rank 0...{args.world_size - 1} "
                "and --dist-url tcp://HOST:PORT, or a launcher such as torchrun"
            )
        check_rank(args.rank, args.world_size)
        rank, size = args.rank, args.world_size
    return rank, size, local_rank


def meeting_point(dist_url: str) -> str:
    """HOST:PORT or file://PATH where the processes meet, by --dist-url or the launcher's environment.

    Raises UserError where they could not meet there.
    """
    if dist_url.startswith("file:///"):
        return dist_url
    if dist_url == "env://":
        if in_slurm_step():
            for name, value in slurm_meeting_point().items():
                os.environ.setdefault(name, value)
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise UserError(
                f"several processes, but no {' and '.join(missing)} in the environment that says where they "
                "meet: start them by torchrun or srun, or give --dist-url tcp://HOST:PORT; for one process "
                "unset RANK and WORLD_SIZE"
            )
        dist_url = f"tcp://{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    parts = re.fullmatch(r"tcp://\[?([^/]+?)\]?:(\d{1,5})", dist_url)
    if not parts or not 0 < int(parts[2]) < 2**16:
        raise UserError(f"the processes cannot meet at {dist_url}: it should be tcp://HOST:PORT")
    try:
        socket.getaddrinfo(parts[1], int(parts[2]))
    except OSError as error:
        raise UserError(
            f"the processes cannot meet at {dist_url}: host {parts[1]} is not known here ({error.strerror})"
        ) from error
    return f"{parts[1]}:{parts[2]}"


def slurm_meeting_point() -> dict[str, str]:
    """MASTER_ADDR and MASTER_PORT of a step of srun: its first host, a port of this step alone."""
    env = os.environ
    hosts = env.get("SLURM_STEP_NODELIST", env.get("SLURM_JOB_NODELIST", ""))
    first_host = re.match(r"[^,\[]+(\[\d+)?", hosts)
    step = f"{env.get('SLURM_JOB_ID')}.{env.get('SLURM_STEP_ID')}"
    return {
        "MASTER_ADDR": first_host[0].replace("[", "") if first_host else "127.0.0.1",
        "MASTER_PORT": str(20000 + zlib.crc32(step.encode()) % 10000),  # below the system's own
    }


def join(
    args: argparse.Namespace, rank: int, size: int, backend: str, may_differ: Collection[str] = ()
) -> None:
    """Join the process group; UserError where the processes do not meet or were not started as one run."""
    where = meeting_point(args.dist_url)
    waiting = threading.Timer(
        SECONDS_OF_SILENCE,
        log.warning,
        ("process %d of %d is still waiting at %s for the others (up to 30 minutes)", rank, size, where),
    )
    waiting.start()
    on_ctrl_c = signal.signal(signal.SIGINT, signal.SIG_DFL)  # torch waits without looking for signals
    try:
        store, rank, size = next(rendezvous(args.dist_url, rank, size))
        # torchrun keeps the store when it starts lost ranks again: what the earlier ones left there would
        # mislead
        store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        compare_options(store, args, rank, size, may_differ)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        if "EADDRINUSE" in reason:
            raise UserError(
                f"the port of {where} is taken, perhaps by another run: choose another one (--master_port of "
                "torchrun, MASTER_PORT or --dist-url)"
            ) from error
        raise UserError(
            f"the {size} processes did not meet at {where}: {reason[:200]}; start all of them, each with "
            "that address; $GLOO_SOCKET_IFNAME or $NCCL_SOCKET_IFNAME names the network between machines"
        ) from error
    finally:
        waiting.cancel()
        signal.signal(signal.SIGINT, on_ctrl_c)


def compare_options(
    store: dist.Store, args: argparse.Namespace, rank: int, size: int, may_differ: Collection[str]
) -> None:
    """Raise UserError on every rank if one was started with other options: two runs may have met."""
    own = {"command": Path(sys.argv[0]).name, **vars(args)}
    own = {name: str(value) for name, value in own.items() if name not in (*MAY_DIFFER, *may_differ)}
    store.set(f"options of {rank}", json.dumps(own))
    all_options = [json.loads(store.get(f"options of {other}")) for other in range(size)]
    all_options[rank] = own  # a second process of this rank may have replaced what the store holds
    first = all_options[0]
    for other, theirs in enumerate(all_options):
        differing = [name for name in first | theirs if first.get(name) != theirs.get(name)]
        if differing:
            _let_all_read(store, rank, size)
            name = differing[0]
            raise UserError(
                f"two runs met, or one was started with different options: {name} is {first.get(name)} on "
                f"process 0, {theirs.get(name)} on process {other}; give all the same, and each run a port "
                "of its own (--master_port of torchrun, MASTER_PORT)"
            )


def _let_all_read(store: dist.Store, rank: int, size: int) -> None:
    """The store ends with process 0, so that one leaves last."""
    store.set(f"read by {rank}", "")
    if rank == 0:
        with contextlib.suppress(dist.DistError):
            store.wait([f"read by {other}" for other in range(size)], timedelta(seconds=SECONDS_OF_SILENCE))


def set_up_cpu() -> None:
    """Share the cores among this machine's processes, unless $OMP_NUM_THREADS is set; keep freed memory."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, available_cores() // local_processes()))
    log.info("%d thread(s) per process compute ($OMP_NUM_THREADS sets it)", torch.get_num_threads())
    keep_freed_memory()


def start(args: argparse.Namespace, may_differ: Collection[str] = ()) -> World:
    """Start logging, choose and set up this process's device, join the process group if there is one.

    Options that ``may_differ`` from process to process are those of a machine, such as places of data.
    """
    rank, size, local_rank = _ranks(args)
    start_logging(rank == 0)
    if torch.cuda.is_available() and args.gpu != -1:
        by_launcher = process_ranks()[1] > 1
        index = local_rank if args.gpu is None or by_launcher else args.gpu
        if index >= torch.cuda.device_count():
            raise UserError(
                f"process {rank} wants GPU {index}, but {torch.cuda.device_count()} are visible; start one "
                "process per GPU (--nproc_per_node) or set CUDA_VISIBLE_DEVICES"
            )
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
        if size == 1 and torch.cuda.device_count() > 1:
            log.warning(
                f"{torch.cuda.device_count()} GPUs are visible, one process uses one of them; start one "
                f"process per GPU: torchrun --nproc_per_node={torch.cuda.device_count()} ..."
            )
    else:
        device = torch.device("cpu")
        if rank == 0 and args.gpu != -1:
            log.warning("no GPU is visible: running on the CPU")
        set_up_cpu()
    if size > 1:
        # names of torch 2.14, which 2.11 lacks; and strides of 1x1x1 kernels, which mean nothing
        warnings.filterwarnings(
            "ignore", ".*(broadcast_buffers|all_gather_into_tensor)` is deprecated", FutureWarning
        )
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
        backend = args.dist_backend or ("nccl" if device.type == "cuda" else "gloo")
        if backend == "nccl" and device.type == "cpu":
            raise UserError("--dist-backend nccl needs a GPU for each process; on a CPU use gloo")
        join(args, rank, size, backend, may_differ)
    return World(rank, size, device)


def stop() -> None:
    """Leave the process group and wait for its threads; nothing may hold a DistributedDataParallel any more.

    A thread of the group that is still at work when Python ends aborts the process (SIGABRT, "terminate
    called without an active exception").
    """
    if dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()


def closes_process_group(main: Callable[..., None]) -> Callable[..., None]:
    """Decorate a ``main`` that calls ``start``: it leaves the process group in order, however it ends.

    An error that comes from the loss of another process becomes a UserError.
    """

    @functools.wraps(main)
    def run(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except BaseException as error:
            _let_variables_go(error)
            is_lost = isinstance(error, RuntimeError) and LOST_PROCESS.search(str(error))
            if not (is_lost and dist.is_initialized()):
                raise
            raise UserError(
                f"another process of this run ended ({str(error).splitlines()[0][:120]}); start it again: "
                "training goes on from its last checkpoint with --resume auto"
            ) from error
        finally:
            stop()

    return run


def _let_variables_go(error: BaseException | None) -> None:
    """Those of the functions that an error left: models among them hold the process group."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
