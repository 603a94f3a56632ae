"""Other processes of this machine or container."""

import os
from pathlib import Path


def is_running(pid: int) -> bool:
    """Whether a process is there and has not ended; one that was killed exists for a while."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    # Until its parent takes note.
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return True
