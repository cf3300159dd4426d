"""Errors that reach a user as one line."""

import functools
import io
import os
import re
import sys

PLAIN_WORDS = {  # what an error, or the traceback that a loader process hands on, says, and what it means
    r"Too many open files|received 0 items of ancdata": "too many files are open: raise the limit (ulimit -n "
    "65536) or lower -j",
    r"shared memory|Bus error": "shared memory (/dev/shm) is full: enlarge it (docker run --shm-size=8g) or "
    "lower -j",
    r"DataLoader worker \(pid.*(killed|exited)": "a loader process ended, most likely as memory ran out: "
    "lower -j",
    r"(CUDA|HIP).*out of memory|CUBLAS_STATUS_ALLOC_FAILED": "the GPU's memory ran out: lower --batch_size",
    r"[Cc]an(no|')t allocate memory|Unable to allocate": "memory ran out: lower --batch_size or -j",
}


class UserError(Exception):
    """Something the user can mend: the message names the value at fault and the remedy."""


def plain_words(error: BaseException | None) -> str | None:
    """What the user can do about an error of the system, its cause or what it interrupted; else None."""
    while error is not None:
        lines = str(error).splitlines() if isinstance(error, (RuntimeError, OSError, MemoryError)) else []
        for pattern, meaning in PLAIN_WORDS.items():
            for line in lines:
                if re.search(pattern, line):
                    reason = line.strip()[:100]
                    return (
                        f"{meaning} ({reason}); training goes on from its last checkpoint with --resume auto"
                    )
        error = error.__cause__ or error.__context__
    return None


def one_line_errors(main):
    """Decorate a command's ``main``: an error that the user can mend is one line on stderr and exit status 2.

    Ctrl-C is one line and 130; a reader of the output that left, as "| head" does, is 141 and no line.
    """

    def leave(message: str, status: int) -> None:
        print(f"error: {message}", file=sys.stderr, flush=True)
        sys.exit(status)

    @functools.wraps(main)
    def run(*args, **kwargs):
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may lack letters of a name
        try:
            result = main(*args, **kwargs)
            sys.stdout.flush()  # where a reader that left early is noticed
            return result
        except UserError as error:
            _, _, message = str(error).rpartition(f"{UserError.__module__}.UserError: ")
            leave(message.strip(), 2)  # without the traceback that a loader process puts before
        except KeyboardInterrupt:
            leave("stopped by Ctrl-C", 130)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        except (RuntimeError, OSError, MemoryError) as error:
            meaning = plain_words(error)
            if meaning is None:
                raise
            leave(meaning, 2)

    return run
