import subprocess
import sys

SCRIPT = """
import resource, sys
import numpy as np
from utils.memory import keep_freed_memory
if sys.argv[1] == "kept": keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def use():
    for size in (5_000_000, 3_000_000, 9_000_000):
        np.ones(size, np.uint8)
use()
before = faults()
for _ in range(20): use()
print(faults() - before)
"""


def test_freed_memory_is_used_again():
    given_back, kept = (
        int(subprocess.check_output([sys.executable, "-c", SCRIPT, how])) for how in ("given back", "kept")
    )
    assert kept < 100 < 500 < given_back
