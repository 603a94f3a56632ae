"""A plain copy of the template's working tree: what a commit of it would hold, without git."""

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def template_files(root: Path = ROOT) -> list[Path]:
    """The files of the working tree that git does not ignore, relative to it, sorted."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    names = sorted(set(filter(None, listed.split("\0"))))
    # A file that was deleted but not committed yet is still in the index.
    return [Path(name) for name in names if (root / name).is_file()]


def copy_template(destination: Path, root: Path = ROOT) -> Path:
    """Copy those files to `destination`, which is made, and answer it."""
    for name in template_files(root):
        target = destination / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, target)
    return destination


def clean_files(folder: Path) -> list[str]:
    """Every file in `folder`, relative and with slashes, sorted."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def read_tree(folder: Path) -> dict[str, bytes]:
    """Content by path, with a marker for files that are executable."""
    tree = {}
    for name in clean_files(folder):
        path = folder / name
        mode = b"x " if path.stat().st_mode & 0o100 else b"- "
        tree[name] = mode + path.read_bytes()
    return tree
