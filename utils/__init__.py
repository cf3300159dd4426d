"""What knows nothing of video. All commands import it before what Windows lacks, so that is refused here."""

import sys

if sys.platform == "win32":
    sys.stderr.write(
        "error: Windows is not supported: use its Subsystem for Linux (WSL), or a Linux machine\n"
    )
    sys.exit(2)
