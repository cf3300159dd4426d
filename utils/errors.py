"""Errors that reach a user as one line."""
import functools
import sys


class UserError(Exception):
    """Something the user can mend: the message names the value at fault and the remedy."""


def one_line_errors(main):
    """Decorate a command's ``main``: a UserError becomes one line on stderr and exit status 2."""

    @functools.wraps(main)
    def run(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            sys.exit(2)

    return run
