"""What an update does to the files of a service, on real repositories, whatever git's settings."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.snapshot import read_tree
from tests.update.repository import run_git
from tests.update.small import CHANGELOG, FIRST, Small

STACK, CACHE, GONE = "app/core/stack.py", "app/core/cache.py", "app/core/gone.py"
MOVED = "app/core/http/stack.py"


def changed(name: str, old: str, new: str) -> str:
    """A file of the first release with a line changed."""
    assert FIRST[name].count(old) == 1
    return FIRST[name].replace(old, new)


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return Small(tmp_path)


@pytest.fixture
def next_release(small: Small) -> Small:
    """With something of each kind in it, and a team that has worked in the same files."""
    small.release(
        "1.1.0",
        {
            STACK: None,
            MOVED: changed(STACK, "LIMIT = 10", "LIMIT = 20"),
            CACHE: changed(CACHE, "SECONDS = 60", "SECONDS = 90"),
            GONE: None,
            "app/core/new.py": "NEW = 1\n",
            "README.md": changed("README.md", "line 3\n", "line 3 of the template\n"),
        },
        changelog=CHANGELOG,
    )
    small.write(
        {
            STACK: changed(STACK, "line 20\n", "line 20 of the team\n"),
            CACHE: changed(CACHE, "SECONDS = 60", "SECONDS = 61"),
            GONE: changed(GONE, "word 3\n", "word 3 of the team\n"),
            "README.md": changed("README.md", "line 25\n", "line 25 of the team\n"),
            "app/shop/models.py": "__tablename__ = 'shop'\n",
        }
    )
    small.save()
    small.write({"uv.lock": "locked", "ignored/by nobody.txt": ""})
    small.write({".git/info/exclude": "ignored/\n"})
    return small


def test_each_kind_of_change_arrives(next_release: Small) -> None:
    printed = next_release.update(code=1)

    moved = next_release.read(MOVED)
    assert "LIMIT = 20" in moved
    assert "line 20 of the team" in moved
    assert not (next_release.service / STACK).exists()
    assert f"{MOVED} (from {STACK}, with your change)" in printed
    cache = next_release.read(CACHE)
    assert "<<<<<<< yours\nSECONDS = 61\n=======\nSECONDS = 90\n>>>>>>> template-1.1.0\n" in cache
    assert "word 3 of the team" in next_release.read(GONE)
    stages = [line.split()[2:] for line in next_release.git("ls-files", "-u").splitlines()]
    assert stages == [["1", CACHE], ["2", CACHE], ["3", CACHE], ["1", GONE], ["2", GONE]]
    readme = next_release.read("README.md")
    assert "line 3 of the template" in readme
    assert "line 25 of the team" in readme
    assert next_release.read("app/core/new.py") == "NEW = 1\n"
    assert "_commit: 1.1.0\n" in next_release.read(".copier-answers.yml")
    assert f"_src_path: {next_release.template}\n" in next_release.read(".copier-answers.yml")
    assert next_release.read("uv.lock") == "locked"
    # Only what somebody must act on is listed.
    assert "When you update:\n\nrun `true`." in printed
    assert "The limit is higher" not in printed
    assert "app/core/new.py" not in printed


def test_conflicts_are_ended_as_those_of_any_merge(next_release: Small) -> None:
    next_release.update(code=1)
    next_release.write({CACHE: "SECONDS = 75\n"})
    next_release.git("add", CACHE)
    next_release.git("rm", "--quiet", "--force", GONE)
    next_release.save()
    assert next_release.git("show", "--format=", "--name-status", "-M", "--", STACK, MOVED)
    next_release.update("--check")
    assert "nothing newer than 1.1.0" in next_release.update()


def test_a_preview_touches_nothing_and_says_all(next_release: Small) -> None:
    before = read_tree(next_release.service)
    printed = next_release.update("--preview")
    assert read_tree(next_release.service) == before
    assert printed.startswith("# From 1.0.0 to 1.1.0\n\n## 1.1.0\n\nThe limit is higher.\n")
    assert "The first." not in printed
    for heading, name in {
        "1 in conflict: you and the template changed the same lines": CACHE,
        "1 in conflict: the template deleted what you had changed": GONE,
        "1 merged with your change": "README.md",
        "1 moved by the template": f"{MOVED} (from {STACK}, with your change)",
        "1 new": "app/core/new.py",
    }.items():
        assert f"\n{heading}:\n\n  - {name}\n" in printed
    assert printed.endswith("\nNothing was changed.\n")


def test_a_check_tells_by_its_exit_code(next_release: Small) -> None:
    assert next_release.update("--check", code=1) == "1.1.0 is newer than 1.0.0.\n"


def test_what_the_team_moved_gets_the_changes(small: Small) -> None:
    small.git("mv", STACK, "app/ours.py")
    small.save()
    small.release("1.1.0", {STACK: changed(STACK, "LIMIT = 10", "LIMIT = 20")})
    printed = small.update()
    assert "LIMIT = 20" in small.read("app/ours.py")
    assert not (small.service / STACK).exists()
    assert f"{STACK} (now app/ours.py)" in printed


def test_what_the_team_deleted_stays_deleted_and_is_told(small: Small) -> None:
    small.write({STACK: None, CACHE: None})
    small.save()
    small.release(
        "1.1.0", {STACK: changed(STACK, "LIMIT = 10", "LIMIT = 20"), CACHE: None, "new.py": ""}
    )
    printed = small.update()
    assert not (small.service / STACK).exists()
    assert f"stays deleted:\n\n  - {STACK}\n" in printed
    assert CACHE not in printed


def test_what_both_deleted_or_wrote_alike_is_no_conflict(small: Small) -> None:
    small.write({CACHE: None, "both.py": "BOTH = 1\n"})
    small.save()
    small.release("1.1.0", {CACHE: None, "both.py": "BOTH = 1\n"})
    small.update()
    assert small.read("both.py") == "BOTH = 1\n"


def test_files_of_the_same_name_are_a_conflict(small: Small) -> None:
    small.write({"both.py": "OURS = 1\n"})
    small.save()
    small.release("1.1.0", {"both.py": "THEIRS = 1\n"})
    assert "both.py" in small.update(code=1)
    assert "OURS = 1\n=======\nTHEIRS = 1\n" in small.read("both.py")


def test_deleted_files_and_their_empty_folders_go(small: Small) -> None:
    small.release("1.1.0", {GONE: None, CACHE: None, STACK: None, "app/core/__init__.py": None})
    printed = small.update()
    assert not (small.service / "app" / "core").exists()
    assert "4 deleted" in printed


def test_a_file_becomes_a_folder_and_back(small: Small) -> None:
    small.release("1.1.0", {GONE: None, "app/core/gone.py/inner.py": "INNER = 1\n"})
    before = small.tree()
    small.update()
    assert small.read("app/core/gone.py/inner.py") == "INNER = 1\n"
    small.update("--abort")
    assert small.tree() == before


def test_modes_and_links_arrive(small: Small) -> None:
    script = small.template / "template" / "run.sh"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    (small.template / "template" / "link").symlink_to("README.md")
    small.release("1.1.0", {})
    small.update()
    assert os.access(small.service / "run.sh", os.X_OK)
    assert (small.service / "link").readlink() == Path("README.md")


def test_revisions_are_the_teams(small: Small) -> None:
    first = "migrations/versions/0001_initial.py"
    small.write({first: None, "migrations/versions/ours.py": "revision = '1'\n"})
    small.save()
    small.release("1.1.0", {first: "revision = '0002'\n", "new.py": ""})
    small.update()
    assert not (small.service / first).exists()
    assert small.read("migrations/versions/ours.py") == "revision = '1'\n"


# Settings of git that change what status, diff, add, merge, checkout and log do or print.
SETTINGS = {
    "untracked files": "[status]\nshowUntrackedFiles = no\n",
    "ignored": "[core]\nexcludesFile = {home}/ignored\n",
    "line ends": "[core]\nautocrlf = true\n",
    "merge style": "[merge]\nconflictStyle = diff3\nrenames = false\n[diff]\nrenames = false\n",
    "directories": "[merge]\ndirectoryRenames = true\nff = only\n[rerere]\nenabled = true\n",
    "prefixes": "[diff]\nnoprefix = true\nmnemonicPrefix = true\nexternal = false\n",
    "colours": "[color]\nui = always\n[core]\nquotePath = false\npager = false\n",
    "attributes": "[core]\nattributesFile = {home}/attributes\n",
    "hooks": "[core]\nhooksPath = {home}/hooks\n",
    "signed": "[commit]\ngpgSign = true\n[log]\nshowSignature = true\n[tag]\ngpgSign = true\n",
    "modes": "[core]\nfileMode = false\nignoreStat = true\ntrustctime = false\n",
    "index": "[index]\nversion = 4\n[core]\nsplitIndex = true\nuntrackedCache = true\n",
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_outcome_is_the_same_whatever_the_user_has_configured(
    next_release: Small, name: str, tmp_path: Path
) -> None:
    home = next_release.home
    plain = committed_after_an_update(next_release, tmp_path / "plain")
    (home / "ignored").write_text("*.rej\nnew.py\nhttp/\n")
    (home / "attributes").write_text("*.py merge=union -text\n* merge=ours\n")
    hook = home / "hooks" / "post-checkout"
    hook.parent.mkdir()
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    with (home / ".gitconfig").open("a") as configuration:
        configuration.write(SETTINGS[name].format(home=home))
    assert committed_after_an_update(next_release, tmp_path / "configured") == plain


def committed_after_an_update(small: Small, folder: Path) -> dict[str, str]:
    """What stands in the index of a copy of the service, and in the files as git would add them."""
    shutil.copytree(small.service, folder, symlinks=True)
    original, small.service = small.service, folder
    try:
        small.git("update-index", "--refresh")
        small.update(code=1)
        index = small.git("ls-files", "--stage", "-z").split("\0")
        names = sorted({line.partition("\t")[2] for line in index if line})
        ids = small.git("-c", "core.safecrlf=false", "hash-object", *names).split()
    finally:
        small.service = original
    return {"index": "\n".join(index), **dict(zip(names, ids, strict=True))}


def test_what_git_ignores_is_not_overwritten(next_release: Small) -> None:
    next_release.write({".git/info/exclude": "ignored/\nnew.py\n", "app/core/new.py": "mine"})
    before = next_release.tree()
    printed = next_release.update(code=2)
    assert "in the way. Move them:\n  app/core/new.py" in printed
    assert next_release.tree() == before


def test_what_is_untracked_is_not_overwritten_with_any_setting(next_release: Small) -> None:
    next_release.git("config", "status.showUntrackedFiles", "no")
    next_release.write({"app/core/new.py": "mine"})
    assert "  app/core/new.py\n" in next_release.update(code=2)
    assert next_release.read("app/core/new.py") == "mine"


def test_a_file_in_the_place_of_a_folder_is_not_overwritten(next_release: Small) -> None:
    next_release.write({".git/info/exclude": "ignored/\nhttp\n", "app/core/http": "mine"})
    assert "  app/core/http" in next_release.update(code=2)
    assert next_release.read("app/core/http") == "mine"


@pytest.mark.parametrize("staged", [False, True])
def test_uncommitted_changes_are_refused(next_release: Small, staged: bool) -> None:
    next_release.write({"README.md": "unsaved"})
    if staged:
        next_release.git("add", "README.md")
    printed = next_release.update(code=2)
    assert "  README.md\nCommit them first" in printed
    assert next_release.read("README.md") == "unsaved"


@pytest.mark.parametrize("flag", ["--assume-unchanged", "--skip-worktree"])
def test_changes_that_git_is_not_to_see_are_not_lost(next_release: Small, flag: str) -> None:
    next_release.git("update-index", flag, "README.md")
    next_release.write({"README.md": "mine alone"})
    assert "  README.md" in next_release.update(code=2)
    assert next_release.read("README.md") == "mine alone"


def test_committed_markers_are_refused(next_release: Small) -> None:
    marked = "<<<<<<< before updating\na\n=======\nb\n>>>>>>> after updating\n"
    next_release.write({"README.md": marked})
    next_release.save()
    assert "were committed. Edit these files and commit them:\n  README.md" in next_release.update(
        code=2
    )


def test_an_update_can_be_taken_back(next_release: Small) -> None:
    before = next_release.tree()
    next_release.update(code=1)
    assert next_release.tree() != before
    next_release.write({"uv.lock": "locked anew"})
    next_release.update("--abort")
    assert next_release.tree() == before
    assert "no update to take back" in next_release.update("--abort", code=2)


def test_edits_made_since_are_kept_beside(next_release: Small) -> None:
    next_release.update(code=1)
    next_release.write({CACHE: "half resolved"})
    printed = next_release.update("--abort")
    [copy] = [line for line in printed.splitlines() if CACHE in line]
    assert Path(copy.removeprefix("  - ")).read_text() == "half resolved"


def test_a_committed_update_is_not_taken_back(next_release: Small) -> None:
    next_release.update(code=1)
    next_release.save()
    before = next_release.tree()
    assert "git revert" in next_release.update("--abort", code=2)
    assert next_release.tree() == before


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("moment", [1, 4, 9, 13, 14, 15, 17, 18, 19, 20])
def test_it_can_be_killed_at_any_moment(next_release: Small, name: str, moment: int) -> None:
    before = next_release.tree()
    number = signal.Signals[name]
    code = -number if name == "SIGKILL" else 128 + number
    printed = next_release.update(code=code, kill=(number, moment))
    assert "killed before" in printed
    if name != "SIGKILL":
        assert next_release.tree() == before
    elif (next_release.service / ".git" / "template-update").exists():
        assert "was interrupted" in next_release.update(code=2)
        next_release.update("--abort")
    assert next_release.tree() == before
    # And nothing of it is in the way of the next.
    next_release.update(code=1)


def test_the_service_may_be_a_part_of_a_repository(next_release: Small) -> None:
    top = next_release.service.with_name("everything")
    (top / "services").mkdir(parents=True)
    next_release.service.rename(top / "services" / "shop")
    shutil.rmtree(top / "services" / "shop" / ".git")
    next_release.service = top
    next_release.git("init", "--quiet")
    next_release.write({"README.md": "of everything\n", ".gitignore": "uv.lock\nignored\n"})
    next_release.save()
    next_release.service = top / "services" / "shop"
    before = next_release.tree()
    printed = next_release.update(code=1)
    assert CACHE in printed
    assert "line 20 of the team" in next_release.read(MOVED)
    assert CACHE in next_release.git("ls-files", "-u")
    assert (top / "README.md").read_text() == "of everything\n"
    next_release.update("--abort")
    assert next_release.tree() == before


def test_the_service_may_be_in_a_worktree(next_release: Small) -> None:
    beside = next_release.service.with_name("beside")
    next_release.git("worktree", "add", "--quiet", str(beside))
    next_release.service = beside
    before = next_release.tree()
    next_release.update(code=1)
    assert "line 20 of the team" in next_release.read(MOVED)
    next_release.update("--abort")
    assert next_release.tree() == before


def test_names_of_files_may_be_anything(next_release: Small) -> None:
    for name in (b"caf\xe9.txt", b'with "quotes"\n and lines', " spaces é".encode()):
        Path(os.fsdecode(os.fsencode(next_release.service) + b"/" + name)).write_text("ours")
    next_release.save()
    before = next_release.tree()
    next_release.update(code=1)
    assert {k: v for k, v in before.items() if "caf" in k} == {
        k: v for k, v in next_release.tree().items() if "caf" in k
    }
    next_release.update("--abort")
    assert next_release.tree() == before


RENAMES = """
["1.1.0".modules]
"app.core.stack" = "app.core.http.stack"
"app.core.cache" = "app.core.redis.store"
["1.1.0".settings]
CACHE_TTL = "CACHE_SECONDS"
"""


def test_renames_reach_the_lines_of_the_team(small: Small) -> None:
    own = """import app.core.cache
from app.core import cache, gone, stack
from app.core import (
    cache as kept,
)
from app.core.stack import LIMIT

print(app.core.cache.SECONDS, "app.core.stack.LIMIT", app.core.cached)
print(settings.CACHE_TTL, X_CACHE_TTL)
"""
    small.write(
        {
            "app/shop/service.py": own,
            "pyproject.toml": 'ignore = ["app/core/cache.py", "app.core.stack"]\n',
            "notes.md": "app.core.stack\n",
            ".env.example": "# CACHE_TTL=5 here\n\n" + FIRST[".env.example"],
            ".env": "CACHE_TTL=5\n",
            ".gitignore": ".env\n",
        }
    )
    small.save()
    small.release(
        "1.1.0",
        {
            STACK: None,
            MOVED: FIRST[STACK],
            CACHE: None,
            "app/core/redis/store.py": FIRST[CACHE],
            ".env.example": changed(".env.example", "CACHE_TTL=60", "CACHE_SECONDS=60"),
        },
        renames=RENAMES,
    )
    printed = small.update()
    assert (
        small.read("app/shop/service.py")
        == """import app.core.redis.store
from app.core import gone
from app.core.http import stack
from app.core.redis import store as cache
from app.core.redis import store as kept
from app.core.http.stack import LIMIT

print(app.core.redis.store.SECONDS, "app.core.http.stack.LIMIT", app.core.cached)
print(settings.CACHE_SECONDS, X_CACHE_TTL)
"""
    )
    assert (
        small.read("pyproject.toml")
        == 'ignore = ["app/core/redis/store.py", "app.core.http.stack"]\n'
    )
    assert small.read("notes.md") == "app.core.stack\n"
    assert small.read(".env.example").startswith("# CACHE_SECONDS=5 here\n\n# How much.\n")
    assert "  - app/shop/service.py:6: from app.core.http.stack import LIMIT\n" in printed
    assert "New settings, see .env.example:\n\n  - CACHE_SECONDS\n" in printed
    assert "Settings that are gone:\n\n  - CACHE_TTL, now CACHE_SECONDS\n" in printed
    assert "Still set in .env:\n\n  - CACHE_TTL\n" in printed


def test_renames_of_former_releases_are_not_applied_again(small: Small) -> None:
    small.write({"app/shop.py": "from app.core.stack import LIMIT\n"})
    small.save()
    small.release("1.1.0", {"new.py": ""}, renames=RENAMES.replace("1.1.0", "1.0.0"))
    small.update()
    assert small.read("app/shop.py") == "from app.core.stack import LIMIT\n"


def test_a_table_of_renames_that_cannot_be_read_changes_nothing(small: Small) -> None:
    small.release("1.1.0", {"new.py": ""}, renames="= nothing")
    assert "renames.toml cannot be read" in small.update(code=2)


def test_who_needs_what_is_gone_is_told(small: Small) -> None:
    small.write(
        {
            "app/shop.py": "from app.core import gone\n",
            "app/other.py": "import app.core.gone_by\n",
            "app/core/extra/__init__.py": "",
        }
    )
    small.save()
    small.release("1.1.0", {GONE: None})
    printed = small.update()
    assert "To repair:\n\n  - app/shop.py names a module that is gone\n\n" in printed


def test_what_comes_back_can_be_had_as_it_was(small: Small) -> None:
    small.write({CACHE: changed(CACHE, "SECONDS = 60", "SECONDS = 61")})
    small.save()
    small.release("1.1.0", {CACHE: None, STACK: None})
    small.update(code=1)
    small.git("rm", "--quiet", "--force", CACHE)
    small.save()
    small.release("1.2.0", {CACHE: FIRST[CACHE], STACK: FIRST[STACK]})
    printed = small.update()
    [command] = [line.removeprefix("  - git ") for line in printed.splitlines() if "- git" in line]
    small.git(*command.split())
    assert "SECONDS = 61" in small.read(CACHE)


def test_new_tables_ask_for_a_migration(small: Small) -> None:
    small.release("1.1.0", {"app/core/new.py": "__tablename__ = 'new'\n"})
    assert 'uv run just migration "template update"' in small.update()


def test_a_release_can_be_named(small: Small) -> None:
    small.release("1.1.0", {"new.py": "1.1\n"})
    small.release("1.2.0", {"new.py": "1.2\n"})
    small.update("--to", "1.1.0")
    assert small.read("new.py") == "1.1\n"
    small.save()
    assert "older than 1.1.0" in small.update("--to", "1.0.0", code=2)
    assert "no release 3.0.0" in small.update("--to", "3.0.0", code=2)


@pytest.mark.parametrize("arguments", [("--data", "novalue"), ("--unknown",), ("too", "much")])
def test_wrong_arguments_are_told(small: Small, arguments: tuple[str, ...]) -> None:
    assert "just update: error" in small.update(*arguments, code=2)


def test_a_service_of_an_unreleased_commit_has_nothing_newer(small: Small) -> None:
    small.release("1.1.0", {"new.py": ""})
    run_git(small.template, "commit", "--quiet", "--allow-empty", "-m", "later")
    now = run_git(small.template, "describe", "--tags").strip()
    small.write({".copier-answers.yml": f"_commit: {now}\n_src_path: {small.template}\n"})
    small.save()
    assert f"nothing newer than {now}" in small.update()


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ("_src_path: ../template\n_commit: 1.0.0\n", "an absolute path there"),
        ("_src_path: {service}\n_commit: 1.0.0\n", "this service itself"),
        ("_src_path: /nowhere\n_commit: 1.0.0\n", "cannot be reached at /nowhere"),
        ("_src_path: {template}\n", "has no _commit"),
        ("_commit: 1.0.0\n", "has no _src_path"),
        ("_src_path: {template}\n_commit: 0.9.0\n", "has no release 0.9.0"),
        (None, ".copier-answers.yml is missing"),
    ],
)
def test_a_source_that_is_not_there_is_told(small: Small, answers: str | None, told: str) -> None:
    text = answers and answers.format(service=small.service, template=small.template)
    small.write({".copier-answers.yml": text})
    small.save()
    assert told in small.update(code=2)


def test_a_shallow_source_is_told(small: Small, tmp_path: Path) -> None:
    small.release("1.1.0", {"new.py": ""})
    run_git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{small.template}", "shallow")
    answers = f"_src_path: {tmp_path / 'shallow'}\n_commit: 1.0.0\n"
    small.write({".copier-answers.yml": answers})
    small.save()
    assert "or a shallow clone of it" in small.update(code=2)


def test_a_folder_without_a_commit_is_told(small: Small) -> None:
    shutil.rmtree(small.service / ".git")
    assert "finds no commit of this folder" in small.update(code=2)


def test_copier_is_found_by_the_path_that_uv_tells(small: Small, tmp_path: Path) -> None:
    """`uvx` need not be on PATH, nor `uv`."""
    uv = tmp_path / "somewhere" / "uv"
    uv.parent.mkdir()
    uv.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\nexit 3\n')
    uv.chmod(0o755)
    small.release("1.1.0", {"new.py": ""})
    assert "could not render 1.0.0" in small.update(code=2, extra={"COPIER": "", "UV": str(uv)})
    arguments = (tmp_path / "arguments").read_text()
    assert arguments.startswith("tool run --quiet --from copier>=9.19,<10 copier recopy ")
    assert "trust" not in arguments


def copier_after(small: Small, folder: Path, before: str, after: str = "true") -> dict[str, str]:
    """Variables that have shell commands run around each render."""
    script = folder / "copier"
    copier = small.environment()["COPIER"]
    script.write_text(
        f'#!/bin/sh\n(cd {small.service} && {before}) >&2\n{copier} "$@" || exit\n'
        f"cd {small.service} && {after}\n"
    )
    script.chmod(0o755)
    return {"COPIER": str(script)}


def test_what_is_written_while_it_renders_is_not_lost(next_release: Small, tmp_path: Path) -> None:
    extra = copier_after(next_release, tmp_path, f"echo late line >> {STACK}")
    assert f"  {STACK}\n" in next_release.update(code=2, extra=extra)
    assert "late line" in next_release.read(STACK)


def test_what_is_committed_while_it_renders_is_not_lost(
    next_release: Small, tmp_path: Path
) -> None:
    commit = "git -c user.name=a -c user.email=a@example.com commit -q --allow-empty -m late"
    extra = copier_after(next_release, tmp_path, "true", commit)
    assert "committed meanwhile" in next_release.update(code=2, extra=extra)


def test_two_updates_do_not_meet(next_release: Small, tmp_path: Path) -> None:
    extra = copier_after(next_release, tmp_path, f"{sys.executable} -m devtools.update; false")
    extra["COPIER"] = f"sh -c '{extra['COPIER']} \"$@\" && false' sh"
    printed = next_release.update(code=2, extra=extra)
    assert "could not render 1.0.0: Another update is at work here" in printed


@pytest.mark.parametrize(
    "variables",
    [
        {"GIT_DIR": "HERE/.git"},
        {"GIT_DIR": "HERE/.git", "GIT_WORK_TREE": "HERE"},
        {"GIT_INDEX_FILE": "HERE/.git/index"},
        {"GIT_DEFAULT_HASH": "sha256"},
    ],
)
def test_it_works_in_a_hook_of_git(next_release: Small, variables: dict[str, str]) -> None:
    here = str(next_release.service)
    given = {name: value.replace("HERE", here) for name, value in variables.items()}
    before = next_release.tree()
    next_release.update("--preview", extra=given)
    assert next_release.tree() == before
    next_release.update(code=1, extra=given)
    assert "line 20 of the team" in next_release.read(MOVED)


def test_a_folder_becomes_a_file(small: Small) -> None:
    small.release("1.1.0", {"tools/a.py": "A = 1\n"})
    small.update()
    small.save()
    small.release("1.2.0", {"tools/a.py": None})
    (small.template / "template" / "tools").rmdir()
    small.release("1.3.0", {"tools": "a file\n"})
    small.write({"tools/mine.pyc": "MINE = 1\n", ".git/info/exclude": "mine.pyc\n"})
    assert "  tools" in small.update("--to", "1.3.0", code=2)
    small.write({"tools/mine.pyc": None})
    before = small.tree()
    small.update("--to", "1.3.0")
    assert small.read("tools") == "a file\n"
    small.update("--abort")
    assert small.tree() == before


def test_what_came_into_a_new_folder_is_no_obstacle_to_going_back(small: Small) -> None:
    small.release("1.1.0", {GONE: None, "app/core/gone.py/inner.py": "INNER = 1\n"})
    before = small.tree()
    small.update()
    small.write({"app/core/gone.py/cached.pyc": "x"})
    assert "copies are in" in small.update("--abort")
    assert small.tree() == before


def test_a_link_to_a_folder_leads_nowhere(small: Small, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (small.service / "linked").symlink_to(tmp_path / "elsewhere")
    small.write({".git/info/exclude": "linked\n"})
    small.release("1.1.0", {"linked/x.py": "X = 1\n"})
    assert "  linked\n" in small.update(code=2)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_an_unfinished_merge_is_refused(next_release: Small) -> None:
    next_release.write({".git/MERGE_HEAD": next_release.git("rev-parse", "HEAD")})
    assert "not finished here (MERGE_HEAD)" in next_release.update(code=2)


@pytest.mark.parametrize(
    ("written", "becomes"),
    [
        ("from app.core import cache; start()\n", None),
        ("start(); from app.core import cache\n", None),
        ("try: from app.core import cache, gone\nexcept E: pass\n", None),
        ("from app.core import (\n    cache,  # we need it\n)\n", None),
        (
            "from app.core import cache  # noqa: E402 why\n",
            "from app.core.redis import store as cache  # noqa: E402 why\n",
        ),
        (
            "if 1:\r\n    from app.core import cache\r\n",
            "if 1:\r\n    from app.core.redis import store as cache\r\n",
        ),
        ('u = "https://x.org/app/core/cache"\n', 'u = "https://x.org/app/core/cache"\n'),
    ],
)
def test_no_code_is_lost_where_names_change(
    small: Small, written: str, becomes: str | None
) -> None:
    """What shares its line with an import is left as it is, and told."""
    small.write({"app/shop.py": written})
    small.save()
    small.release("1.1.0", {CACHE: None, "app/core/redis/store.py": FIRST[CACHE]}, renames=RENAMES)
    printed = small.update()
    assert small.read("app/shop.py") == (becomes or written)
    assert ("app/shop.py names a module that is gone" in printed) is (becomes is None)


def test_names_can_be_swapped_and_handed_on(small: Small) -> None:
    table = """
["1.1.0".modules]
"app.core.stack" = "app.core.cache"
"app.core.cache" = "app.core.stack"
"app.core.a" = "app.core.b"
["1.2.0".modules]
"app.core.b" = "app.core.c"
"""
    own = ["import app.core.stack", "import app.core.cache", "import app.core.a"]
    small.write({"app/shop.py": "\n".join(own)})
    small.save()
    small.release("1.2.0", {"new.py": ""}, renames=table)
    small.update()
    new = ["import app.core.cache", "import app.core.stack", "import app.core.c"]
    assert small.read("app/shop.py").split("\n") == new


def test_edits_of_two_rounds_are_both_kept(next_release: Small) -> None:
    kept = []
    for text in ("first", "second"):
        next_release.update(code=1)
        next_release.write({CACHE: text})
        printed = next_release.update("--abort")
        [copy] = [line for line in printed.splitlines() if CACHE in line]
        kept.append(Path(copy.removeprefix("  - ")))
    assert [path.read_text() for path in kept] == ["first", "second"]


def test_a_reader_that_goes_away_does_not_change_the_outcome(next_release: Small) -> None:
    shell = f"{sys.executable} -m devtools.update | true"
    result = subprocess.run(
        ["bash", "-o", "pipefail", "-c", shell],
        cwd=next_release.service,
        env=next_release.environment(),
        stderr=subprocess.PIPE,
        check=False,
    )
    assert (result.returncode, result.stderr) == (1, b"")
    assert "line 20 of the team" in next_release.read(MOVED)


def test_what_is_known_of_a_release_is_not_told_again(small: Small) -> None:
    """Not even where the template has no tags, as in a clone of a clone."""
    small.release("1.1.0", {"new.py": ""}, changelog=CHANGELOG)
    commit = run_git(small.template, "rev-parse", "--short", "HEAD").strip()
    run_git(small.template, "tag", "--delete", "1.0.0", "1.1.0")
    small.write({".copier-answers.yml": f"_commit: {commit}\n_src_path: {small.template}\n"})
    small.save()
    assert "nothing newer" in small.update()
    assert "When you update" not in small.update("--data", "name=value")
