"""How many processor cores there are to use."""

import os


def available_cores() -> int:
    """Cores that this process may run on; where the system keeps no such set (macOS), all there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
