"""Builds a service's image without an engine, and runs commands from it on a read-only root."""

import json
import os
import shutil
import subprocess
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.environments import locked

SUITE = "bookworm"
# Its Python is Debian's; pip comes as a wheel, because Debian's brings a compiler's worth of files.
PACKAGES = "python3,passwd,libstdc++6"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
# How the machine reaches its package index, which the build has to know as well.
_INDEX_VARIABLES = ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "HTTPS_PROXY")
# One process from start to end: a signal to it reaches the command.
_RUN = """
root=$1 user=$2 writable=$3; shift 3
mkdir -p "$writable/tmp" "$writable/data"
chown "$user" "$writable/tmp" "$writable/data"
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount --bind "$writable/tmp" "$root/tmp"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
if [ -d "$root/data" ]; then mount --bind "$writable/data" "$root/data"; fi
exec chroot --userspec="$user" --groups= "$root" /usr/bin/env -i -C /srv "$@"
"""


def what_is_missing() -> str | None:
    """Why no image can be built and run here, or nothing."""
    missing = [name for name in ("buildah", "mmdebstrap", "unshare") if not shutil.which(name)]
    if missing:
        return f"install {' and '.join(missing)} to have this run (Debian's packages)"
    if os.getuid() != 0:
        return "building and running an image here needs root, for mounts"
    return None


@dataclass(frozen=True)
class Image:
    """An image that was built."""

    root: Path
    """Its file system."""
    config: Mapping[str, Any]
    """As `docker inspect` shows it: `User`, `Env`, `Cmd`, `Healthcheck`, `Labels` ..."""

    def command(self, environment: Mapping[str, str], writable: Path) -> list[str]:
        """What a command of the image has to follow to be run as its user on a read-only root.

        Args:
            environment: Its variables, besides the image's own.
            writable: The folder for what its commands share: `/tmp`, and `/data` where it is.
        """
        variables = [*self.config["Env"], *(f"{k}={v}" for k, v in environment.items())]
        unshare = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", _RUN, "run"]
        return [*unshare, str(self.root), self.config["User"], str(writable), *variables]


class Images:
    """A store of images of its own."""

    def __init__(self, folder: Path, kept: Path) -> None:
        """Use a folder of this run, in memory if possible, and one that is kept between runs."""
        self._folder = folder
        self._kept = kept
        folder.mkdir(parents=True)

    def build(self, service: Path) -> Image:
        """Build the image of a service that has a lock file."""
        name = f"localhost/{service.name.lower()}"
        base = self._base()
        options = [
            "--format",
            "docker",
            "--isolation",
            "chroot",
            "--network",
            "host",
            "--layers=false",
        ]
        arguments = ["--build-arg", f"PYTHON_IMAGE={base}", "--build-arg", "REVISION=a1b2c3"]
        file = ["--file", str(service / "deploy" / "Dockerfile"), "--tag", name]
        self._buildah("bud", "--quiet", *options, *arguments, *file, str(service))
        described = json.loads(self._buildah("inspect", "--type", "image", name))
        config = described["Docker"]["config"]
        container = self._buildah("from", name)
        root = Path(self._buildah("mount", container))
        for needed in ("dev", "proc", "tmp"):
            (root / needed).mkdir(exist_ok=True)
        return Image(root, config)

    def _base(self) -> str:
        name = "localhost/base"
        if self._buildah("images", "--quiet", "--filter", f"reference={name}"):
            return name
        container = self._buildah("from", "scratch")
        self._buildah("add", "--quiet", container, str(self._debian()), "/")
        root = Path(self._buildah("mount", container))
        _install_pip(root)
        variables = {"PIP_BREAK_SYSTEM_PACKAGES": "1"}
        if CERTIFICATES.exists():
            target = root / CERTIFICATES.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(CERTIFICATES, target)
            variables |= dict.fromkeys(("PIP_CERT", "SSL_CERT_FILE"), str(CERTIFICATES))
        variables |= {name: os.environ[name] for name in _INDEX_VARIABLES if name in os.environ}
        settings = [part for k, v in variables.items() for part in ("--env", f"{k}={v}")]
        self._buildah("config", *settings, container)
        self._buildah("commit", "--quiet", "--rm", container, name)
        return name

    def _debian(self) -> Path:
        """A small Debian with Python, which is kept: it takes longer than all the rest."""
        made = self._kept / f"{SUITE}.tar"
        with locked(self._kept / "lock"):
            if not made.exists():
                part = made.with_suffix(".part")
                options = ["--variant=essential", f"--include={PACKAGES}", "--format=tar"]
                options += ["--dpkgopt=force-unsafe-io", "--quiet"]
                self._run("mmdebstrap", *options, SUITE, str(part))
                part.rename(made)
        return made

    def _buildah(self, *arguments: str) -> str:
        store = ["--root", str(self._folder / "root"), "--runroot", str(self._folder / "run")]
        return self._run("buildah", *store, "--storage-driver", "vfs", *arguments)

    def _run(self, *command: str) -> str:
        environment = {**os.environ, "TMPDIR": str(self._folder)}
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, errors="replace", check=False
        )
        if result.returncode:
            raise AssertionError(f"{' '.join(command)}:\n{result.stdout}{result.stderr}")
        return result.stdout.strip()


def _install_pip(root: Path) -> None:
    # As in the images that the Dockerfile is made for; Python's own bundle holds the wheel.
    import ensurepip

    [wheel] = (Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl")
    packages = root / "usr/local/lib/python3.11/dist-packages"
    packages.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    pip = root / "usr/local/bin/pip"
    pip.write_text('#!/bin/sh\nexec python3 -m pip "$@"\n')
    pip.chmod(0o755)
