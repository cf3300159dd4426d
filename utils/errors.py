"""Errors that reach a user as one line."""

import functools
import os
import sys


class UserError(Exception):
    """Something the user can mend: the message names the value at fault and the remedy."""


def one_line_errors(main):
    """Decorate a command's ``main``: one line on stderr and exit status 2 for a UserError, 130 for Ctrl-C."""

    @functools.wraps(main)
    def run(*args, **kwargs):
        try:
            result = main(*args, **kwargs)
            sys.stdout.flush()  # where a reader that left early is noticed
            return result
        except UserError as error:
            message = str(error).rpartition(f"{UserError.__module__}.UserError: ")[
                2
            ]  # a loader's holds its traceback
            print(f"error: {message.strip()}", file=sys.stderr, flush=True)
            sys.exit(2)
        except KeyboardInterrupt:
            print("error: stopped by Ctrl-C", file=sys.stderr, flush=True)
            sys.exit(130)
        except BrokenPipeError:  # of "| head": whoever read the output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)

    return run
