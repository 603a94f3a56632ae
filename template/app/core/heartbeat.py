"""The sign of life of a process without an HTTP port, for the probes of its platform."""

import asyncio
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from app.core.processes import is_running

_INTERVAL_SECONDS = 2.0
_LOOK_SECONDS = 0.1
_LATE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What the process writes about itself; times are seconds since the epoch."""

    working_at: float
    draining: bool
    stuck: int = 0
    alive_at: float = field(default_factory=time.time)
    pid: int = field(default_factory=os.getpid)

    @property
    def state(self) -> tuple[bool, bool, int]:
        """What a probe wants to know at once when it changes."""
        return self.draining, self.working_at > 0, self.stuck


def heartbeat_file(configured: str | Path | None) -> Path:
    """Where a worker shows that it is alive.

    Args:
        configured: `WORKER_HEARTBEAT_FILE`; by default a file in the system's temporary folder.

    Raises:
        FileNotFoundError: none is configured, and no temporary folder can be written.
    """
    # Not while modules are imported: the search writes, and the service runs without a worker.
    return Path(configured or Path(tempfile.gettempdir()) / "worker-heartbeat.json")


def write_heartbeat(file: Path, heartbeat: Heartbeat) -> None:
    """Replace the file at once, so that no reader sees half of it."""
    new = file.with_name(f"{file.name}.{heartbeat.pid}")
    new.write_text(json.dumps(asdict(heartbeat)))
    new.replace(file)


def find_problem(file: Path, *, ready: bool) -> str | None:
    """What is wrong with the process behind the file; `None` when nothing is.

    Alive is a process that exists, whose event loop ran within the last ten seconds, and of whose
    handlers each ends when it is cancelled: of one that does not only a restart gets rid. Ready is
    one that also reached its queue in that time and does not drain; it comes and goes with Redis,
    so it is no reason to restart anything.

    Args:
        file: Where that process writes its heartbeat; on the same machine or container.
        ready: Ask for readiness rather than liveness.
    """
    try:
        heartbeat = Heartbeat(**json.loads(file.read_text()))
    except FileNotFoundError:
        return f"there is no heartbeat at {file}"
    except (OSError, TypeError, ValueError) as error:
        return f"the heartbeat at {file} cannot be read ({type(error).__name__})"
    now = time.time()
    problem = None
    if not is_running(heartbeat.pid):
        problem = "is gone"
    elif now - heartbeat.alive_at > _LATE_SECONDS:
        problem = f"has been stuck for {now - heartbeat.alive_at:.0f} s"
    elif heartbeat.stuck:
        problem = f"has {heartbeat.stuck} jobs that do not end"
    elif ready and heartbeat.draining:
        problem = "is about to end"
    elif ready and now - heartbeat.working_at > _LATE_SECONDS:
        problem = "does not reach its queue"
    return problem and f"process {heartbeat.pid} {problem}"


async def beat(file: Path, current: Callable[[], Heartbeat]) -> None:
    """Write the heartbeat every two seconds, and when its state changes, until cancelled."""
    written: Heartbeat | None = None
    while True:
        now = current()
        if (
            written is None
            or now.state != written.state
            or abs(now.alive_at - written.alive_at) >= _INTERVAL_SECONDS
        ):
            write_heartbeat(file, now)
            written = now
        await asyncio.sleep(_LOOK_SECONDS)
