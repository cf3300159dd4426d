"""Processes and devices: one process, torchrun, torch.distributed.launch or SLURM, on GPUs or a CPU."""

import argparse
import ctypes
import logging
import os
import re
import warnings
import zlib
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from utils.errors import UserError
from utils.log import start_logging
from utils.processes import available_cores, check_rank, in_slurm_step, process_ranks

log = logging.getLogger("coclr")

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


@dataclass(frozen=True)
class World:
    """This process's place among all of them."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def _ranks(args: argparse.Namespace) -> tuple[int, int, int]:
    """(rank, world size, local rank), from the launcher's environment, else from the options, else one process."""
    rank, size, local_rank = process_ranks()
    if "LOCAL_RANK" not in os.environ and args.local_rank is not None and not in_slurm_step():
        local_rank = args.local_rank
    if size == 1 and args.world_size > 1:
        if args.rank < 0:
            raise UserError(
                f"--world-size {args.world_size} needs --rank 0...{args.world_size - 1} "
                "and --dist-url tcp://HOST:PORT, or a launcher such as torchrun"
            )
        check_rank(args.rank, args.world_size)
        return args.rank, args.world_size, local_rank
    if size > 1 and in_slurm_step():
        first_host, port = slurm_meeting_point()
        os.environ.setdefault("MASTER_ADDR", first_host)
        os.environ.setdefault("MASTER_PORT", str(port))
    return rank, size, local_rank


def slurm_meeting_point() -> tuple[str, int]:
    """(host, port) where the processes of a step of srun meet: each step of a job has a port of its own."""
    env = os.environ
    hosts = env.get("SLURM_STEP_NODELIST", env.get("SLURM_JOB_NODELIST", ""))
    first_host = re.match(r"[^,\[]+(\[\d+)?", hosts)
    step = f"{env.get('SLURM_JOB_ID')}.{env.get('SLURM_STEP_ID')}"
    port = 20000 + zlib.crc32(step.encode()) % 10000  # below the ports that the system itself hands out
    return first_host[0].replace("[", "") if first_host else "127.0.0.1", port


def set_up_cpu() -> None:
    """Share the cores among this machine's processes, unless $OMP_NUM_THREADS is set, and keep freed memory.

    Memory that goes back to the system after every layer costs a page fault for each 4 KB of the next.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    log.info("%d thread(s) per process compute ($OMP_NUM_THREADS sets it)", torch.get_num_threads())
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # of glibc
    if set_option:
        set_option(M_MMAP_MAX, 0)
        set_option(M_TRIM_THRESHOLD, 2**31 - 1)


def start(args: argparse.Namespace) -> World:
    """Start logging, join the process group if there are several processes, choose and set up this process's device."""
    rank, size, local_rank = _ranks(args)
    start_logging(rank == 0)
    if torch.cuda.is_available() and args.gpu != -1:
        index = args.gpu if args.gpu is not None and size == 1 else local_rank
        if index >= torch.cuda.device_count():
            raise UserError(
                f"process {rank} wants GPU {index}, but {torch.cuda.device_count()} are visible; start one "
                "process per GPU (--nproc_per_node) or set CUDA_VISIBLE_DEVICES"
            )
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
        if size == 1 and torch.cuda.device_count() > 1:
            log.warning(
                "%d GPUs are visible, one process uses one of them; start one process per GPU: torchrun "
                "--nproc_per_node=%d ...",
                torch.cuda.device_count(),
                torch.cuda.device_count(),
            )
    else:
        device = torch.device("cpu")
        if rank == 0 and args.gpu != -1:
            log.warning("no GPU is visible: running on the CPU")
        args.channels_last = True  # quicker there in every precision
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
        store, rank, size = next(rendezvous(args.dist_url, rank, size))
        # torchrun keeps the store when it starts lost ranks again: what the earlier ones left there would mislead
        store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    return World(rank, size, device)


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()
