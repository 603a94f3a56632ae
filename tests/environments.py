"""Virtual environments for rendered services: one for each set of packages, kept between runs."""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOCK = "uv.lock"
# Written when an environment is complete, and touched whenever it is used.
MARKER = "complete"
UNUSED_SECONDS = 14 * 24 * 3600.0


class InstallationFailedError(AssertionError):
    """uv could not install what a service declares; the message holds its output."""


@dataclass(frozen=True)
class Environments:
    """Environments that hold nothing of a service itself, which is no package.

    Services that declare the same have one between them. What they declare is resolved anew in
    each run; that an environment holds exactly this is checked for each service.
    """

    kept: Path
    """The folder of the environments, kept from run to run."""
    run: Path
    """A folder of this run, shared by its workers: what was resolved in it."""

    def prepare(self, service: Path, environ: Mapping[str, str]) -> Path:
        """Have the environment of a service, which gets a lock file, and answer its folder.

        Raises:
            InstallationFailedError: if uv fails, or the environment holds anything else.
        """
        self._resolve(service, environ)
        environment = self.kept / _digest([sys.version, *_resolved(service / LOCK)])
        own = {**environ, "UV_PROJECT_ENVIRONMENT": str(environment)}
        with locked(self.kept / f"{environment.name}.lock"):
            if not (environment / MARKER).exists():
                self._make(environment, service, own)
            (environment / MARKER).touch()
        # Nothing is missing, of another version, or there without being declared.
        _uv(["sync", "--quiet", "--locked", "--check"], service, own)
        return environment

    def _resolve(self, service: Path, environ: Mapping[str, str]) -> None:
        name = _digest(declared(service / "pyproject.toml"))
        resolved = self.run / f"{name}.{LOCK}"
        with locked(self.run / f"{name}.lock"):
            if not resolved.exists():
                _uv(["lock", "--quiet"], service, environ)
                shutil.copyfile(service / LOCK, resolved)
                return
        shutil.copyfile(resolved, service / LOCK)

    def _make(self, environment: Path, service: Path, environ: Mapping[str, str]) -> None:
        shutil.rmtree(environment, ignore_errors=True)
        _remove_unused(self.kept)
        with locked(self.kept / "bytecode.lock"):
            bytecode = self.kept / "bytecode"
            if bytecode.exists():
                _uv(["sync", "--quiet", "--locked"], service, environ)
            else:
                # Once for all: it takes a hundred times as long as the rest.
                compiling = {**environ, "UV_COMPILE_BYTECODE": "1"}
                _uv(["sync", "--quiet", "--locked"], service, compiling)
                for cache in environment.rglob("__pycache__"):
                    stored = bytecode / cache.relative_to(environment)
                    shutil.copytree(cache, stored, copy_function=os.link)
                return
        _link_bytecode(bytecode, environment)


def declared(project: Path) -> dict[str, Any]:
    """What decides what uv installs for the `pyproject.toml` of a service."""
    config = tomllib.loads(project.read_text())
    names = ("name", "version", "requires-python", "dependencies", "optional-dependencies")
    return {
        "project": {name: config["project"].get(name) for name in names},
        "groups": config.get("dependency-groups"),
        "uv": config.get("tool", {}).get("uv"),
    }


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which is made; other processes wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _resolved(lock: Path) -> list[str]:
    packages = tomllib.loads(lock.read_text())["package"]
    # The service itself is the one that comes from the folder.
    return sorted(f"{p['name']}=={p['version']}" for p in packages if "virtual" not in p["source"])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _uv(arguments: list[str], folder: Path, environ: Mapping[str, str]) -> None:
    # `uv run` tells where uv is; it need not be on PATH.
    result = subprocess.run(
        [os.environ.get("UV", "uv"), *arguments],
        cwd=folder,
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        output = f"{result.stdout}{result.stderr}"
        raise InstallationFailedError(f"`uv {' '.join(arguments)}` in {folder}:\n{output}")


def _link_bytecode(source: Path, target: Path) -> None:
    """Give `target` the compiled modules of `source`.

    Python compiles anew what belongs to another version of a module: each names the time and size
    of its source. It never changes a file in place, so that links are safe.
    """
    for cache in source.rglob("__pycache__"):
        own = target / cache.relative_to(source)
        if own.parent.exists() and not own.exists():
            shutil.copytree(cache, own, copy_function=os.link)


def _remove_unused(folder: Path) -> None:
    for marker in folder.glob(f"*/{MARKER}"):
        if time.time() - marker.stat().st_mtime > UNUSED_SECONDS:
            shutil.rmtree(marker.parent, ignore_errors=True)
