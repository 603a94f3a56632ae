"""What the files of every render must be like, whatever is in them."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.combinations import COMBINATIONS, Combination
from tests.rendering import Renderer
from tests.snapshot import ROOT, clean_files, read_tree
from tests.update.repository import commit, run_git

Rendered = Callable[[Combination], Path]

WINDOWS_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
WINDOWS_FORBIDDEN = re.compile(r'[<>:"|?*\\\x00-\x1f]|[. ]$')
GENERATED = re.compile(r"(^|/)(\.env|[\w-]+\.lock|\.venv/.*|__pycache__/.*)$")


def test_names_are_safe_on_windows(combination: Combination, rendered: Rendered) -> None:
    names = clean_files(rendered(combination))
    parts = {part for name in names for part in name.split("/")}
    assert [p for p in parts if WINDOWS_DEVICE.fullmatch(p) or WINDOWS_FORBIDDEN.search(p)] == []
    assert len({name.lower() for name in names}) == len(names), "two names differ only in case"
    assert max(map(len, names)) < 120


def test_no_empty_folder_is_left(combination: Combination, rendered: Rendered) -> None:
    folder = rendered(combination)
    empty = [p for p in folder.rglob("*") if p.is_dir() and not any(p.iterdir())]
    assert empty == []


def test_no_secret_lock_or_ignored_file_is_rendered(
    combination: Combination, rendered: Rendered, tmp_path: Path
) -> None:
    folder = rendered(combination)
    names = clean_files(folder)
    assert [name for name in names if GENERATED.search(name)] == []
    # A file that the service's own .gitignore hides would never be committed by its team.
    run_git(tmp_path, "init", "--quiet")
    (tmp_path / ".gitignore").write_text((folder / ".gitignore").read_text())
    check = ["git", "-c", "core.excludesFile=", "check-ignore", "--no-index", "--stdin"]
    found = subprocess.run(
        check, cwd=tmp_path, input="\n".join(names), capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout) == (1, ""), found.stdout + found.stderr


def test_text_is_clean(combination: Combination, rendered: Rendered) -> None:
    folder = rendered(combination)
    for name in clean_files(folder):
        text = (folder / name).read_text(encoding="utf-8")
        assert "\r" not in text, name
        assert "{%" not in text, name
        assert str(ROOT) not in text, name
        if text:
            assert text.endswith("\n"), name
            assert not text.endswith("\n\n"), name
            assert not re.search(r"[ \t]+$", text, re.MULTILINE), name
            assert "\n\n\n\n" not in text, name


def test_a_checkout_has_the_same_ends_of_lines_on_any_machine(
    renderer: Renderer, tmp_path: Path
) -> None:
    folder = renderer.render(COMBINATIONS[0].answers)
    rendered = read_tree(folder)
    run_git(folder, "init", "--quiet")
    commit(folder, "Start from the template")
    checkout = tmp_path / "checkout"
    # As git for Windows is set up.
    run_git(folder, "-c", "core.autocrlf=true", "clone", "--quiet", str(folder), str(checkout))
    found = {name: data for name, data in read_tree(checkout).items() if name in rendered}
    assert found == rendered
