"""Where a run keeps what it throws away: in memory, where there is enough of it."""

import os
import shutil
import tempfile
from pathlib import Path

# Where Linux keeps files in memory.
MEMORY = Path("/dev/shm")  # noqa: S108
# Renders, clones and databases of eight workers take a part of it.
NEEDED_BYTES = 8 * 1024**3


def make_run_folder() -> Path:
    """Make the folder of a run and have all its processes make their temporary files in it.

    Renders and updates write and remove some hundred thousand small files, which costs three
    times as long on a disk. Whoever sets `TMPDIR` decides for themselves.
    """
    parent = None if "TMPDIR" in os.environ or not _is_fit(MEMORY) else MEMORY
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=parent))
    # A database server runs as another user where we are root.
    folder.chmod(0o711)
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    return folder


def _is_fit(folder: Path) -> bool:
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        return False
    # Containers often have 64 MiB there, from which nothing can be run.
    may_execute = not os.statvfs(folder).f_flag & os.ST_NOEXEC
    return may_execute and shutil.disk_usage(folder).free >= NEEDED_BYTES
