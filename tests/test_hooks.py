"""The service's hooks, at real commits: what a merge has left to decide is refused."""

import subprocess
from pathlib import Path

from tests.combinations import parse_combination
from tests.environments import Environments
from tests.pipelines import pipeline_environment
from tests.rendering import Renderer
from tests.service import Service, render_command
from tests.update.repository import commit, run_git

MARKERS = "<<<<<<< before updating\nOURS\n=======\nTHEIRS\n>>>>>>> after updating\n"
# A heading, and what merely looks like markers.
TEXT = "Heading\n=======\n\n    <<<<<<< before updating\n\n>>>>>>>>>> ten of them\n"


def run(service: Service, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=service.folder,
        env=pipeline_environment(service.environ()),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def commit_with_hooks(service: Service) -> subprocess.CompletedProcess[str]:
    run_git(service.folder, "add", "--all")
    identity = ["-c", "user.name=Team", "-c", "user.email=team@example.com"]
    return run(service, "git", *identity, "commit", "--quiet", "--message", "A change")


def test_markers_of_conflicts_are_refused(renderer: Renderer, environments: Environments) -> None:
    combination = parse_combination("sqlite")
    service = Service(
        renderer.render(combination.answers), render_command(combination), environments
    )
    service.install()
    notes: Path = service.folder / "docs" / "notes.rst"
    notes.write_text(MARKERS)
    # A folder that is no repository has no merges.
    ran = run(service, "uv", "run", "just", "conflicts")
    assert ran.returncode == 0, ran.stderr
    assert "fatal" not in ran.stderr

    notes.write_text(TEXT)
    run_git(service.folder, "init", "--quiet")
    commit(service.folder, "Start from the template")
    assert run(service, "uv", "run", "just", "hooks").returncode == 0
    (service.folder / "README.md").write_text("Ours\n")
    ran = commit_with_hooks(service)
    assert ran.returncode == 0, ran.stdout + ran.stderr

    before = run_git(service.folder, "rev-parse", "HEAD")
    notes.write_text(MARKERS)
    ran = commit_with_hooks(service)
    assert ran.returncode == 1
    assert "docs/notes.rst:1:<<<<<<< before updating" in ran.stdout + ran.stderr
    assert run_git(service.folder, "rev-parse", "HEAD") == before

    # Committed without the hook; the next commit changes another file.
    commit(service.folder, "By the pipeline")
    (service.folder / "README.md").write_text("Ours again\n")
    ran = commit_with_hooks(service)
    assert ran.returncode == 1
    assert "docs/notes.rst:5:>>>>>>> after updating" in ran.stdout + ran.stderr
    ran = run(service, "uv", "run", "just", "check")
    assert ran.returncode == 1
    assert "docs/notes.rst:1" in ran.stdout
    assert "recipe `conflicts` failed" in ran.stderr

    notes.write_text(TEXT)
    ran = commit_with_hooks(service)
    assert ran.returncode == 0, ran.stdout + ran.stderr
