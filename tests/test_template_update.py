"""The scheduled pipeline that brings releases of the template, run against a repository here.

git is the real one, and so are its merges and the remote, a bare repository that takes push options
as GitLab does. In the place of uv a script does to the checkout what `just update` promises, by a
merge; in the place of GitHub's `gh` one writes down what it is told.
"""

import json
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import pytest
import yaml

from tests.pipelines import github_steps, gitlab_script, run_shell
from tests.programs import program
from tests.rendering import Renderer
from tests.service import clean_environment
from tests.update.repository import commit, run_git

BRANCH = "template-update"
CHANGED = "app/main.py"
CREDENTIAL = "made up"
# What the text begins with, unless there is something to decide.
SAYS = "What `uv run just update --preview` says of it:\n\n"
PREVIEW = 'From 1.0.0 to 1.1.0.\n\n- `app/main.py`: merged — with ❤ and `$(touch run)` \\ "\n'

UV = """#!/usr/bin/env bash
echo "$*" >> "$STUBS/calls"
if [ "$1" = lock ]; then
  [ ! -e "$STUBS/meanwhile" ] || . "$STUBS/meanwhile"
  grep -q '^<<<<<<<' pyproject.toml && exit 2
  echo renewed > uv.lock
  exit
fi
case "$4" in
  --check)
    [ ! -e "$STUBS/address" ] || git ls-remote --quiet "$(cat "$STUBS/address")" main || exit 2
    exit "$(cat "$STUBS/check")"
    ;;
  --preview) cat "$STUBS/preview.md" ;;
  --defaults) [ ! -e "$STUBS/refuse" ] || exit 1; git merge --quiet --squash origin/release ;;
esac
"""
GH = """#!{python}
import json, os, pathlib, sys
stubs, arguments = pathlib.Path(os.environ["STUBS"]), sys.argv[1:]
text = None
if "--body-file" in arguments:
    text = pathlib.Path(arguments[arguments.index("--body-file") + 1]).read_text()
with (stubs / "told").open("a") as file:
    file.write(json.dumps([arguments, text]) + "\\n")
if arguments[0] == "api":
    print((stubs / "number").read_text(), end="")
if "--draft" in arguments and (stubs / "no-drafts").exists():
    sys.exit(1)
if arguments[1] == "create":
    (stubs / "number").write_text("7\\n")
"""
# As `receive-pack` gives them to GitLab.
HOOK = """#!{python}
import json, os, pathlib
count = int(os.environ.get("GIT_PUSH_OPTION_COUNT", "0"))
options = [os.environ[f"GIT_PUSH_OPTION_{{number}}"] for number in range(count)]
with pathlib.Path({file!r}).open("a") as file:
    file.write(json.dumps(options) + "\\n")
"""


def write_program(path: Path, content: str) -> None:
    path.write_text(content)
    path.chmod(0o755)


@dataclass
class Request:
    """A pull or merge request as the platform was told of it."""

    title: str
    text: str
    draft: bool


@dataclass
class Platform:
    """A service at its remote, and a runner of its scheduled job."""

    choice: str
    rendered: Path
    folder: Path
    host: str = ""
    """The address of the host of a private template."""
    said: str = ""
    runs: int = 0
    stubs: Path = field(init=False)
    remote: Path = field(init=False)
    work: Path = field(init=False)

    def __post_init__(self) -> None:
        """Commit the service, and a release that changes it."""
        self.stubs, self.remote = self.folder / "stubs", self.folder / "remote.git"
        self.work = self.folder / "work"
        self.stubs.mkdir()
        run_git(self.folder, "init", "--quiet", "--bare", str(self.remote))
        run_git(self.remote, "config", "receive.advertisePushOptions", "true")
        hook = HOOK.format(python=sys.executable, file=str(self.stubs / "pushed"))
        write_program(self.remote / "hooks" / "post-receive", hook)
        write_program(self.stubs / "uv", UV)
        write_program(self.stubs / "gh", GH.format(python=sys.executable))
        for name, content in (("check", "1"), ("number", ""), ("preview.md", PREVIEW)):
            (self.stubs / name).write_text(content)
        run_git(self.folder, "clone", "--quiet", str(self.remote), str(self.work))
        subprocess.run(["cp", "-R", f"{self.rendered}/.", str(self.work)], check=True)
        (self.work / "uv.lock").write_text("old\n")
        commit(self.work, "Start from the template")
        run_git(self.work, "branch", "release")
        run_git(self.work, "switch", "--quiet", "release")
        answers = self.work / ".copier-answers.yml"
        lines = answers.read_text().splitlines()
        kept = [line for line in lines if not line.startswith("_commit")]
        answers.write_text("\n".join(["_commit: 1.1.0", *kept, ""]))
        self.change("THEIRS = 1")
        self.push("release")
        run_git(self.work, "switch", "--quiet", "main")
        run_git(self.work, "push", "--quiet", "origin", "main")
        (self.stubs / "pushed").unlink()

    def change(self, line: str, name: str = CHANGED) -> None:
        """End a file with another line."""
        path = self.work / name
        path.write_text(f"{path.read_text()}{line}\n")

    def push(self, branch: str) -> None:
        """Commit and push as a member of the team."""
        commit(self.work, "A change")
        run_git(self.work, "push", "--quiet", "origin", f"HEAD:{branch}")
        (self.stubs / "pushed").unlink(missing_ok=True)

    def run(self, version: str = "") -> int:
        """Run the job in a new checkout, and answer its exit status."""
        self.runs += 1
        home = self.folder / f"home-{self.runs}"
        checkout = home / "checkout"
        checkout.parent.mkdir()
        run_git(self.folder, "clone", "--quiet", str(self.remote), str(checkout))
        run_git(checkout, "checkout", "--quiet", "--detach", "origin/main")
        # `$PATH` goes on with what the runner has: git and a shell.
        own = {"HOME": str(home), "STUBS": str(self.stubs), "GIT_CONFIG_NOSYSTEM": "1"}
        environment = clean_environment(own)
        environment["PATH"] = f"{self.stubs}:{environment['PATH']}"
        if self.choice == "gitlab":
            return self._run_gitlab(checkout, environment, version)
        return self._run_github(checkout, environment, version)

    def _run_gitlab(self, checkout: Path, environment: dict[str, str], version: str) -> int:
        own = {
            "CI_SERVER_URL": self.host or "https://gitlab.example.com",
            "CI_SERVER_HOST": "gitlab.example.com",
            "CI_PROJECT_URL": str(self.remote).removesuffix(".git"),
            "CI_COMMIT_BRANCH": "main",
            "CI_JOB_TOKEN": CREDENTIAL,
            "TEMPLATE_VERSION": version,
        }
        file = self.rendered / ".gitlab" / "ci" / f"{BRANCH}.yml"
        script = f"apt-get() {{ :; }}\n{gitlab_script(file, BRANCH)}"
        ran = run_shell(script, checkout, {**environment, **own})
        self.said = ran.stdout + ran.stderr
        return ran.returncode

    def _run_github(self, checkout: Path, environment: dict[str, str], version: str) -> int:
        workflow = self.rendered / ".github" / "workflows" / f"{BRANCH}.yml"
        merge, publish = github_steps(workflow, "update")
        steps = yaml.safe_load(workflow.read_text())["jobs"]["update"]["steps"]
        [settings] = [step["env"] for step in steps if step.get("id") == "merge"]
        if self.host:
            there = {k: v.replace("https://github.com", self.host) for k, v in settings.items()}
            settings = {**there, "TEMPLATE_READ_TOKEN": CREDENTIAL}
        temporary = checkout.parent / "temporary"
        temporary.mkdir()
        outputs = temporary / "outputs"
        outputs.touch()
        own = {
            **settings,
            "RUNNER_TEMP": str(temporary),
            "GITHUB_OUTPUT": str(outputs),
            "GITHUB_STEP_SUMMARY": str(temporary / "summary"),
            "GITHUB_REF_NAME": "main",
            "GITHUB_REPOSITORY_OWNER": "team",
            "GH_REPO": "team/service",
            "VERSION": version,
        }
        ran = run_shell(merge.script, checkout, {**environment, **own})
        self.said = ran.stdout + ran.stderr
        given = dict(line.split("=", 1) for line in outputs.read_text().splitlines())
        if ran.returncode or not given.get("title"):
            return ran.returncode
        told = {name.upper(): value for name, value in given.items()}
        ran = run_shell(publish.script, checkout, {**environment, **own, **told})
        self.said += ran.stdout + ran.stderr
        return ran.returncode

    @property
    def calls(self) -> list[str]:
        """What uv was run with."""
        return (self.stubs / "calls").read_text().splitlines()

    @property
    def head(self) -> str:
        """The commit of the branch at the remote; empty if there is none."""
        names = run_git(
            self.remote, "for-each-ref", "--format=%(objectname)", f"refs/heads/{BRANCH}"
        )
        return names.strip()

    def show(self, name: str) -> str:
        """A file of the branch at the remote."""
        return run_git(self.remote, "show", f"{BRANCH}:{name}")

    def requests(self) -> list[Request]:
        """What the platform was told of requests, oldest first."""
        if self.choice == "gitlab":
            return [_merge_request(options) for options in _lines(self.stubs / "pushed")]
        return _pull_requests(_lines(self.stubs / "told"))


def _lines(file: Path) -> list[list[str]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _merge_request(options: list[str]) -> Request:
    given = dict(option.partition("=")[::2] for option in options)
    assert given["merge_request.create"] == ""
    assert given["merge_request.target"] == "main"
    # git refuses what does not fit a packet.
    assert all(len(option.encode()) < 65_516 for option in options)
    title = given["merge_request.title"]
    text = given["merge_request.description"].replace("\\n", "\n")
    return Request(title.removeprefix("Draft: "), text, title.startswith("Draft: "))


def _pull_requests(calls: list[list[str]]) -> list[Request]:
    found: list[Request] = []
    for arguments, text in calls:
        if arguments[1] in {"create", "edit"}:
            title = arguments[arguments.index("--title") + 1]
            if arguments[1] == "create":
                assert arguments[arguments.index("--head") + 1] == BRANCH
                assert arguments[arguments.index("--base") + 1] == "main"
            assert len(text) < 65_536
            found.append(Request(title, text, "--draft" in arguments))
        elif arguments[1] == "ready":
            found[-1].draft = "--undo" in arguments
    return found


class Private(SimpleHTTPRequestHandler):
    """Serves git's files to whoever has the secret."""

    def do_GET(self) -> None:
        kind, _, given = self.headers.get("Authorization", "").partition(" ")
        users = ("x-access-token", "gitlab-ci-token")
        if kind == "Basic" and given in {
            b64encode(f"{u}:{CREDENTIAL}".encode()).decode() for u in users
        }:
            super().do_GET()
            return
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="git"')
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def private_host(folder: Path) -> Iterator[str]:
    """The address of a server of the repositories in a folder."""
    with HTTPServer(("127.0.0.1", 0), partial(Private, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module", params=["github", "gitlab"])
def rendered_service(request: pytest.FixtureRequest, renderer: Renderer) -> tuple[str, Path]:
    return request.param, renderer.render({"database": "sqlite", "ci": request.param})


@pytest.fixture
def platform(rendered_service: tuple[str, Path], tmp_path: Path) -> Platform:
    choice, rendered = rendered_service
    return Platform(choice, rendered, tmp_path)


def test_without_a_newer_release_nothing_happens(platform: Platform) -> None:
    (platform.stubs / "check").write_text("0")
    assert platform.run() == 0, platform.said
    assert platform.calls == ["run just update --check"]
    assert platform.head == ""
    assert platform.requests() == []


def test_a_release_arrives_as_a_request_with_its_preview(platform: Platform) -> None:
    main = run_git(platform.remote, "rev-parse", "main").strip()
    assert platform.run() == 0, platform.said
    assert platform.calls == [
        "run just update --check",
        "run just update --preview",
        "run just update --defaults",
        "lock",
    ]
    assert platform.show(CHANGED).endswith("THEIRS = 1\n")
    assert platform.show("uv.lock") == "renewed\n"
    assert run_git(platform.remote, "rev-parse", f"{BRANCH}^").strip() == main
    [request] = platform.requests()
    assert (request.title, request.draft) == ("Update the template to 1.1.0", False)
    # A backslash is one in both; GitLab makes a line of "\\n" only.
    assert request.text == SAYS + PREVIEW
    # With what is the same again, the branch stays as it is.
    before = platform.head
    assert platform.run() == 0, platform.said
    assert platform.head == before
    assert len(platform.requests()) == {"github": 2, "gitlab": 1}[platform.choice]


def test_conflicts_arrive_as_a_draft_that_lists_them(platform: Platform) -> None:
    platform.change("OURS = 1")
    platform.change("# Ours", "pyproject.toml")
    platform.push("main")
    (platform.stubs / "no-drafts").touch()
    assert platform.run() == 0, platform.said
    (platform.stubs / "no-drafts").unlink()
    shown = platform.show(CHANGED)
    assert "<<<<<<< " in shown
    assert "OURS = 1" in shown
    assert "THEIRS = 1" in shown
    request = platform.requests()[-1]
    assert request.text.startswith("**Conflicts.** Check out `template-update`")
    assert f"\n\n- `{CHANGED}`\n\n{SAYS}{PREVIEW}" in request.text
    if platform.choice == "github":
        # On a plan without drafts it is an open one.
        assert not request.draft
        assert platform.run() == 0, platform.said
        request = platform.requests()[-1]
    assert request.draft
    # What somebody checks out there does not pass.
    run_git(platform.work, "fetch", "--quiet", "origin")
    run_git(platform.work, "switch", "--quiet", BRANCH)
    ran = subprocess.run(
        [program("just"), "conflicts"],
        cwd=platform.work,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    assert CHANGED in ran.stdout
    # Without the cause it becomes an open one again.
    run_git(platform.work, "switch", "--quiet", "main")
    run_git(platform.work, "revert", "--no-edit", "HEAD")
    platform.push("main")
    assert platform.run() == 0, platform.said
    request = platform.requests()[-1]
    assert (request.draft, request.text) == (False, SAYS + PREVIEW)


def test_a_lock_file_that_cannot_be_renewed_is_named(platform: Platform) -> None:
    run_git(platform.work, "switch", "--quiet", "release")
    platform.change("# Theirs", "pyproject.toml")
    platform.push("release")
    run_git(platform.work, "switch", "--quiet", "main")
    platform.change("# Ours", "pyproject.toml")
    platform.push("main")
    assert platform.run() == 0, platform.said
    assert platform.show("uv.lock") == "old\n"
    [request] = platform.requests()
    assert request.draft
    assert f"**uv.lock is not renewed yet:** run `uv lock`.\n\n{SAYS}{PREVIEW}" in request.text


def test_what_somebody_else_has_committed_stays(platform: Platform) -> None:
    assert platform.run() == 0, platform.said
    run_git(platform.work, "fetch", "--quiet", "origin")
    run_git(platform.work, "switch", "--quiet", BRANCH)
    platform.change("DECIDED = 1")
    platform.push(BRANCH)
    before, told = platform.head, len(platform.requests())
    assert platform.run() == 0
    assert "Somebody has committed to template-update" in platform.said
    assert (platform.head, len(platform.requests())) == (before, told)
    # What main has is nobody's work that would be lost.
    run_git(platform.work, "push", "--quiet", "--force", "origin", f"{BRANCH}:main")
    assert platform.run() == 0, platform.said
    assert "Somebody" not in platform.said


def test_the_branch_is_made_anew_on_the_main_branch(platform: Platform) -> None:
    assert platform.run() == 0, platform.said
    before = platform.head
    platform.change("Ours", "README.md")
    platform.push("main")
    assert platform.run() == 0, platform.said
    assert platform.head != before
    assert platform.show("README.md").endswith("Ours\n")
    assert run_git(platform.remote, "rev-list", "--count", f"main..{BRANCH}").strip() == "1"


def test_what_is_pushed_meanwhile_stays(platform: Platform) -> None:
    pushes = f"git -C {platform.work} push --quiet origin main:{BRANCH}\n"
    (platform.stubs / "meanwhile").write_text(pushes)
    assert platform.run() == 1
    assert "stale info" in platform.said
    assert platform.head == run_git(platform.remote, "rev-parse", "main").strip()


def test_a_long_preview_is_cut_at_a_line(platform: Platform) -> None:
    (platform.stubs / "preview.md").write_text("ä❤!\n" * 30_000)
    assert platform.run() == 0, platform.said
    [request] = platform.requests()
    lines = request.text.removeprefix(SAYS).splitlines()
    assert set(lines[:-2]) == {"ä❤!"}
    assert lines[-2:] == ["", "The rest is left out: `uv run just update --preview` prints it."]


@pytest.mark.parametrize("problem", ["check", "update"])
def test_what_fails_ends_the_job(platform: Platform, problem: str) -> None:
    if problem == "check":
        (platform.stubs / "check").write_text("2")
    else:
        (platform.stubs / "refuse").touch()
    assert platform.run() == {"check": 2, "update": 1}[problem]
    assert platform.head == ""
    assert platform.requests() == []


def test_a_version_is_handed_on_and_is_no_code(platform: Platform) -> None:
    assert platform.run("1.1.0-rc.1") == 0, platform.said
    assert platform.calls[:3] == [
        f"run just update {option} --to 1.1.0-rc.1"
        for option in ("--check", "--preview", "--defaults")
    ]
    (platform.stubs / "calls").write_text("")
    assert platform.run("1.1.0;touch run") == 1
    assert platform.calls == []


def test_a_private_template_is_read_with_a_token(platform: Platform) -> None:
    """Also where its address is one of SSH, which has no key there."""
    (platform.stubs / "check").write_text("0")
    run_git(platform.remote, "update-server-info")
    name = {"github": "github.com", "gitlab": "gitlab.example.com"}[platform.choice]
    with private_host(platform.folder) as host:
        platform.host = host
        for address in (f"{host}/remote.git", f"git@{name}:remote.git"):
            (platform.stubs / "address").write_text(address)
            assert platform.run() == 0, platform.said
