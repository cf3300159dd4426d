"""What a run of training is: a folder of its own, its log, scalars and checkpoints, signals to stop."""

import argparse
import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

from utils.checkpoint import CheckpointFolder, TrainState
from utils.errors import UserError
from utils.files import lock
from utils.launch import World
from utils.log import log, log_to_file
from utils.metrics import as_text
from utils.scalars import Scalars

SECONDS_BETWEEN_LINES = 30  # of progress within an epoch
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # Ctrl-C, schedulers, SLURM before its limit


class Run:
    """A run in ``log-<prefix>/<name>/{model,img}``, which the main process makes and holds alone.

    Raises UserError when it cannot be written, another run holds it, it has checkpoints and --resume is not
    given, or the processes see different ones.

    Attributes:
        folder: the run's folder.
        resume: the checkpoint that --resume means, None for a fresh start.
    """

    def __init__(self, args: argparse.Namespace, name: str, world: World):
        self.args = args
        self.world = world
        self.folder = Path(f"log-{args.prefix}") / name
        self.checkpoints = CheckpointFolder(self.folder / "model")
        if args.start_epoch >= args.epochs:
            raise UserError(
                f"--start_epoch {args.start_epoch} leaves nothing of --epochs {args.epochs} to do"
            )
        if world.is_main:
            self._hold_folder()
        newest = self.checkpoints.newest()
        if world.is_main and newest and not args.resume:
            raise UserError(
                f"{newest} exists: --resume auto goes on from it; for a new run choose another "
                "--name_prefix or remove the folder"
            )
        if world.is_main:
            log_to_file(self.folder / "log.txt")
        if args.resume == "auto":
            self.resume = newest
        else:
            self.resume = Path(args.resume) if args.resume else None
        self._agree_on_checkpoint()
        if not world.is_main and self.folder.is_dir():  # warnings, as of broken videos
            log_to_file(self.folder / "log.txt")
        if args.resume == "auto" and not newest:
            log.info("--resume auto: no checkpoint in %s yet, starting anew", self.folder)
        self._scalars: Scalars | None = None  # of the main process
        self._signal = 0  # the last that asked to stop
        self._last_line = time.monotonic()
        self._reported: set[str] = set()

    def _hold_folder(self) -> None:
        try:
            for part in ("model", "img"):
                (self.folder / part).mkdir(parents=True, exist_ok=True)
            self._lock = lock(self.folder / ".lock", wait=False)  # until the process ends
        except BlockingIOError as error:
            raise UserError(
                f"another run is writing to {self.folder}; wait or choose another --name_prefix"
            ) from error
        except OSError as error:
            raise UserError(
                f"cannot write to {self.folder}: {error.strerror}; choose another place or --prefix"
            ) from error

    def _agree_on_checkpoint(self) -> None:
        """Raise UserError on every rank where they do not all see the same checkpoint to go on from."""
        if not dist.is_initialized():
            return
        own = "none"
        if self.resume and self.resume.is_file():
            own = f"{self.resume.name} of {self.resume.stat().st_size} bytes"
        found = [own] * self.world.size
        dist.all_gather_object(found, own)
        for rank, other in enumerate(found):
            if other != found[0]:
                raise UserError(
                    f"the processes see different checkpoints to go on from: process 0 {found[0]}, process "
                    f"{rank} {other}; start all nodes in the same shared folder"
                )

    @contextlib.contextmanager
    def training(self, first_iteration: int) -> Iterator[None]:
        """While epochs are trained: scalars are open, signals ask to stop."""
        self._scalars = Scalars(self.folder, first_iteration) if self.world.is_main else None
        before = {number: signal.signal(number, self._remember) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            if self._scalars:
                self._scalars.close()

    def _remember(self, number: int, frame: object) -> None:
        self._signal = number

    def asked_to_stop(self) -> int:
        """The signal that asked any rank to stop, 0 for none; all ranks ask together."""
        if not dist.is_initialized():
            return self._signal
        answer = torch.tensor([self._signal], device=self.world.device)
        dist.all_reduce(answer, op=dist.ReduceOp.MAX)
        return int(answer)

    def warn_of_broken(self, problems: list[str]) -> None:
        """Tell the first problem of each video, "name: reason" or "" for none, and how many there are."""
        for problem in filter(None, problems):
            video = problem.split(": ")[0]
            if video not in self._reported:
                self._reported.add(video)
                log.warning("left out, another video stands in: %s (%d so far)", problem, len(self._reported))

    def record(
        self, state: TrainState, steps: list[dict[str, float]], speed: dict[str, float], done: int, total: int
    ) -> None:
        """The scalars of the last ``steps`` and their speed; ``done`` of ``total`` steps are behind.

        Twice a minute a line of it goes to the log.
        """
        if not self._scalars:
            return
        for iteration, values in enumerate(steps, state.iteration - len(steps)):
            self._scalars.add_line(iteration=iteration, epoch=state.epoch, **values)
            self._scalars.add("train", values, iteration)
        self._scalars.add("train", speed, state.iteration)
        self._scalars.flush()
        if time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            left = (self.args.epochs - state.epoch) * total - done
            clips = left * self.args.batch_size * self.world.size
            left = tqdm.format_interval(clips / speed["clips_per_second"])
            log.info(
                f"epoch {state.epoch}, step {done}/{total}: {as_text(steps[-1], 4)}, "
                f"{speed['clips_per_second']:.1f} clips/s, data wait {100 * speed['data_wait']:.0f} %, "
                f"{left} left"
            )

    def end_epoch(
        self, state: TrainState, means: dict[str, float], score: float | None, keep_all: bool = False
    ) -> None:
        """Record the ``means`` of the epoch, which ends, and save it; the best ``score`` marks the best."""
        epoch = state.epoch
        is_last = epoch == self.args.epochs - 1
        is_saved = is_last or (epoch + 1) % self.args.save_freq == 0
        is_best = is_saved and score is not None and score > state.best
        if is_best:
            state.best = score
        state.end_epoch()
        if not self._scalars:
            return
        self._scalars.add("epoch", means, epoch)
        self._scalars.flush()
        log.info("epoch %d of 0-%d: %s", epoch, self.args.epochs - 1, as_text(means, 4))
        if is_saved:
            self.checkpoints.save_epoch(state.checkpoint(vars(self.args)), epoch, is_best, keep_all)

    def leave(self, state: TrainState, number: int) -> None:
        """Save in the middle of an epoch and exit with 128 + ``number`` of the signal that asked for it."""
        if self.world.is_main:
            path = self.checkpoints.save_interrupted(state.checkpoint(vars(self.args)))
            by = signal.Signals(number).name
            log.warning(
                "stopped by %s; saved %s; the same command with --resume auto goes on from there", by, path
            )
        sys.exit(128 + number)
