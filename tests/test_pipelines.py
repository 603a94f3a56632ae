"""What `ci` adds: pipelines that linters and schemas accept, whose steps are run here."""

import json
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from tests.boot import RESOLUTIONS, main
from tests.combinations import COMBINATIONS, Combination, parse_combination, shard
from tests.environments import Environments
from tests.pipelines import (
    Step,
    actionlint,
    actions,
    github_steps,
    gitlab_script,
    job_environment,
    jobs,
    pipeline_environment,
    run_shell,
)
from tests.programs import program, run
from tests.rendering import Renderer
from tests.service import Service, render_command
from tests.snapshot import ROOT, clean_files, read_tree
from tests.update.repository import commit, run_git
from tests.vocabulary import UNKNOWN, forbidden_words

# Every conditional line of these files goes both ways.
SERVICES = (
    ("none", "sqlite"),
    ("docker", "postgresql+jwt+example"),
    ("kubernetes", "postgresql+redis+arq+jwt+websockets+example"),
)
RENDERS = [(choice, *service) for choice in ("github", "gitlab") for service in SERVICES]
OWN = {
    "github": (".github", "docs/ci.md", "renovate.json"),
    "gitlab": (".gitlab", "docs/ci.md", "renovate.json"),
}
# What renovate.json names is the same for both, Docker's images and GitHub's actions.
OTHER_WORDS = {
    "github": ("gitlab", r"merge.request", r"\bCI_"),
    "gitlab": ("github", r"pull.request"),
}
# Of uv, GitHub and GitLab.
OWN_TERMS = r"\buv export\b|\bx-access-token\b|\bproject access token\b"
# The one job that pushes.
WRITES = {"template-update.yml: update": {"contents": "write", "pull-requests": "write"}}
INSIDE = Path(__file__).parent / "inside" / "pipelines.py"

Rendered = tuple[str, str, Combination, Path]


@pytest.fixture(scope="module", params=RENDERS, ids="-".join)
def rendered_choice(request: pytest.FixtureRequest, renderer: Renderer) -> Rendered:
    choice, deployment, name = request.param
    combination = parse_combination(name)
    answers = {**combination.answers, "deployment": deployment, "ci": choice}
    return choice, deployment, combination, renderer.render(answers)


def workflows_of(folder: Path) -> list[Path]:
    return sorted((folder / ".github" / "workflows").glob("*.yml"))


def test_it_only_adds_files(rendered_choice: Rendered, renderer: Renderer) -> None:
    choice, deployment, combination, folder = rendered_choice
    answers = {**combination.answers, "deployment": deployment}
    without, with_files = read_tree(renderer.render(answers)), read_tree(folder)
    changed = {name for name in without if without[name] != with_files[name]}
    assert changed == {".copier-answers.yml"}
    added = with_files.keys() - without.keys()
    assert all(name.startswith(OWN[choice]) for name in added)
    assert any(name.endswith("image.yml") for name in added) == (deployment != "none")


def test_nothing_speaks_of_what_is_off(rendered_choice: Rendered) -> None:
    choice, deployment, combination, folder = rendered_choice
    words = [word for word in forbidden_words(combination) if word not in UNKNOWN]
    words += [*OTHER_WORDS[choice], *(["docker"] if deployment == "none" else [])]
    pattern = re.compile("|".join(words), re.IGNORECASE)
    for name in clean_files(folder):
        if not name.startswith(OWN[choice]) or name == "renovate.json":
            continue
        text = re.sub(OWN_TERMS, "", (folder / name).read_text())
        found = pattern.search(f"{name}\n{text}")
        assert found is None, f"{name}: {found}"


def test_the_files_fit_their_schemas(rendered_choice: Rendered) -> None:
    choice, _, _, folder = rendered_choice
    check = program("check-jsonschema"), "--builtin-schema"
    run(*check, "vendor.renovate", folder / "renovate.json")
    if choice == "github":
        run(*check, "vendor.github-workflows", *workflows_of(folder))
        run(*check, "custom.github-workflows-require-timeout", *workflows_of(folder))
    else:
        files = [folder / ".gitlab-ci.yml", *sorted(folder.glob(".gitlab/ci/*.yml"))]
        run(*check, "vendor.gitlab-ci", "--data-transform", "gitlab-ci", *files)


def test_workflows_pass_zizmor_at_its_strictest(rendered_choice: Rendered) -> None:
    choice, _, _, folder = rendered_choice
    if choice == "github":
        run(program("zizmor"), "--offline", "--no-config", "--persona=auditor", folder)


def test_workflows_pass_actionlint(rendered_choice: Rendered, pytestconfig: pytest.Config) -> None:
    choice, _, _, folder = rendered_choice
    if choice == "github":
        kept = pytestconfig.cache.mkdir("actionlint")
        assert actionlint(workflows_of(folder), kept) == []


def test_actionlint_sees_a_mistake(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    wrong = tmp_path / "wrong.yml"
    wrong.write_text("on: push\njobs: {a: {runs-on: ubuntu-latest, steps: [{run: '${{ x.y }}'}]}}")
    [found] = actionlint([wrong], pytestconfig.cache.mkdir("actionlint"))
    assert 'undefined variable "x"' in found


def test_jobs_but_one_may_read_only_and_all_end(rendered_choice: Rendered) -> None:
    choice, _, _, folder = rendered_choice
    if choice == "gitlab":
        content = yaml.safe_load((folder / ".gitlab-ci.yml").read_text())
        assert content["default"]["timeout"]
        assert content["workflow"]["auto_cancel"] == {"on_new_commit": "interruptible"}
        return
    for name, job, workflow in jobs(workflows_of(folder)):
        assert workflow["permissions"] == {}, name
        assert workflow["concurrency"]["group"], name
        assert job["permissions"] == WRITES.get(name, {"contents": "read"}), name
        checkouts = [s for s in job["steps"] if s.get("uses", "").startswith("actions/checkout@")]
        assert all(step["with"]["persist-credentials"] is False for step in checkouts), name


def test_actions_are_pinned_by_commit_and_alike(rendered_choice: Rendered) -> None:
    choice, _, _, folder = rendered_choice
    used = set(actions(workflows_of(folder)))
    assert bool(used) == (choice == "github")
    assert len({name for name, _, _ in used}) == len(used), "one action has two versions"
    for name, revision, version in used:
        assert re.fullmatch(r"[0-9a-f]{40}", revision), name
        assert re.fullmatch(r"v\d+\.\d+\.\d+", version), name


def test_every_line_for_a_shell_is_one(rendered_choice: Rendered) -> None:
    choice, _, _, folder = rendered_choice
    if choice == "github":
        found = [
            s["run"] for _, job, _ in jobs(workflows_of(folder)) for s in job["steps"] if "run" in s
        ]
    else:
        files = sorted(folder.glob(".gitlab/ci/*.yml"))
        found = [gitlab_script(f, job) for f in files for job in yaml.safe_load(f.read_text())]
    for script in found:
        run("bash", "-n", "-c", script)
        assert "${{" not in script, "what comes from outside would be run as code"


@pytest.fixture
def service(rendered_choice: Rendered, environments: Environments) -> Service:
    _, _, combination, folder = rendered_choice
    made = Service(folder, render_command(combination), environments)
    # Its lock file.
    made.install()
    return made


def test_the_check_runs_what_is_run_by_hand(service: Service, rendered_choice: Rendered) -> None:
    """The lines of the pipeline; of the tests, whose suite the matrix runs, a few."""
    choice, deployment, _, _ = rendered_choice
    folder = service.folder
    if choice == "github":
        workflow = folder / ".github" / "workflows" / "check.yml"
        script = "\n".join(step.script for step in github_steps(workflow, "check"))
        variables = job_environment(workflow, "check")
    else:
        script = gitlab_script(folder / ".gitlab" / "ci" / "check.yml", "check")
        variables = yaml.safe_load((folder / ".gitlab-ci.yml").read_text())["variables"]
        del variables["UV_CACHE_DIR"]
    assert script == "uv sync\nuv run just check"
    assert variables["UV_LOCKED"] == "1"
    if (choice, deployment) != ("github", "none"):
        return  # It is the same line, and a minute.
    few = {"PYTEST_ADDOPTS": "--cov-fail-under=0 -n0 tests/test_env_example.py"}
    ran = run_shell(script, folder, pipeline_environment({**variables, **few}))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "passed" in ran.stdout
    # A lock file that does not fit stops it.
    project = folder / "pyproject.toml"
    before = project.read_text()
    project.write_text(before.replace("dependencies = [", 'dependencies = [\n  "six",', 1))
    ran = run_shell(script, folder, pipeline_environment(variables))
    project.write_text(before)
    shutil.rmtree(folder / ".venv")
    assert ran.returncode != 0
    assert "lockfile" in ran.stderr


REVISION = '''"""A table of the branch."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add it."""
    op.create_table("additions", sa.Column("id", sa.Integer, primary_key=True))


def downgrade() -> None:
    """Take it away."""
    op.drop_table("additions")
'''


@pytest.fixture(scope="module")
def checkouts_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all checkouts, as compiling its modules costs more than all else."""
    return tmp_path_factory.mktemp("environment") / "environment"


def test_a_database_of_the_main_branch_is_migrated(
    service: Service,
    rendered_choice: Rendered,
    checkouts_environment: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choice, deployment, combination, folder = rendered_choice
    own_environment = {"UV_PROJECT_ENVIRONMENT": str(checkouts_environment)}
    cases = []
    for name, failure in (
        ("adds-a-revision", None),
        ("renames-a-revision", "Can't locate revision identified by '0001'"),
        ("forgets-a-revision", "New upgrade operations detected"),
    ):
        if failure and (choice, deployment) != ("github", "docker"):
            continue  # What fails does so wherever the lines are the same.
        main, branch = tmp_path / name / "main", tmp_path / name / "branch"
        ignored = shutil.ignore_patterns(".venv", "__pycache__", ".*_cache")
        for checkout in (main, branch):
            shutil.copytree(folder, checkout, ignore=ignored)
        versions = branch / "migrations" / "versions"
        if failure is None:
            (versions / "0002_additions.py").write_text(REVISION)
        elif name == "renames-a-revision":
            [first] = versions.glob("0001_*.py")
            first.write_text(first.read_text().replace('"0001"', '"9999"'))
        else:
            models = branch / "app" / "orders" / "models.py"
            column = '    __tablename__ = "orders"\n    forgotten: Mapped[int | None]\n'
            models.write_text(models.read_text().replace('    __tablename__ = "orders"\n', column))
        if choice == "github":
            workflow = folder / ".github" / "workflows" / "migrations.yml"
            found = github_steps(workflow, "migrations")
            variables = job_environment(workflow, "migrations")
        else:
            run_git(main, "init", "--quiet")
            commit(main, "Main")
            run_git(branch, "init", "--quiet")
            run_git(branch, "remote", "add", "origin", str(main))
            script = gitlab_script(folder / ".gitlab" / "ci" / "migrations.yml", "migrations")
            # Debian's git is here already.
            script = f"apt-get() {{ :; }}\n{script}"
            found = [Step(script, "branch")]
            job = yaml.safe_load((folder / ".gitlab" / "ci" / "migrations.yml").read_text())
            own = {"CI_PROJECT_DIR": str(branch), "CI_DEFAULT_BRANCH": "main", "UV_LOCKED": "1"}
            variables = {**job["migrations"]["variables"], **own}
        steps = [asdict(Step(s.script, str(main.parent / s.folder))) for s in found]
        environment = pipeline_environment({**variables, **own_environment})
        case = {"name": name, "failure": failure, "steps": steps, "environment": environment}
        cases.append(case)
        expected = {"postgresql": "postgresql://postgres@", "sqlite": "sqlite:////"}
        assert environment["DATABASE_URL"].startswith(expected[combination.database])
    described = tmp_path / "cases.json"
    described.write_text(json.dumps(cases))
    monkeypatch.setenv("PIPELINES", str(described))
    service.run_inside(INSIDE)


@contextmanager
def vulnerabilities(found: list[dict[str, str]]) -> Iterator[str]:
    """The address of a server that answers as OSV does: with these, for the first package."""

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
            self._answer({"results": [{"vulns": found}, *([{}] * (len(asked) - 1))]})

        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]
            self._answer({"id": name, "modified": "2026-01-01T00:00:00Z", "summary": "Made up"})

        def _answer(self, content: object) -> None:
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_dependencies_are_listed_and_audited(service: Service, rendered_choice: Rendered) -> None:
    choice, deployment, _, _ = rendered_choice
    folder = service.folder
    if choice == "github":
        workflow = folder / ".github" / "workflows" / "dependencies.yml"
        listing, audit = (step.script for step in github_steps(workflow, "dependencies"))
    else:
        file = folder / ".gitlab" / "ci" / "dependencies.yml"
        listing, audit = gitlab_script(file, "dependencies").splitlines()
    assert listing.startswith("uv export --no-dev ")
    assert audit == "uv audit --preview-features audit-command --no-dev"
    if deployment == "kubernetes":
        return  # The same lines again.
    environment = pipeline_environment({"UV_LOCKED": "1"})
    ran = run_shell(listing, folder, environment)
    assert ran.returncode == 0, ran.stderr
    bill = folder / "sbom.json"
    names = {component["name"] for component in json.loads(bill.read_text())["components"]}
    bill.unlink()
    assert "fastapi" in names
    assert "pytest" not in names, "it lists what is not deployed"
    made_up = [{"id": "PYSEC-2026-1", "modified": "2026-01-01T00:00:00Z"}]
    for found, status in (([], 0), (made_up, 1)):
        with vulnerabilities(found) as url:
            ran = run_shell(f"{audit} --service-url {url}", folder, environment)
        assert ran.returncode == status, ran.stdout + ran.stderr
    assert "PYSEC-2026-1" in ran.stdout


def test_the_bot_finds_the_release_that_a_service_comes_from(rendered_choice: Rendered) -> None:
    """Renovate's manager `copier` reads files of this name, and the tag and address in it."""
    _, _, _, folder = rendered_choice
    [found] = [
        n for n in clean_files(folder) if re.search(r"(^|/)\.copier-answers(\..+)?\.ya?ml$", n)
    ]
    assert "_src_path" in yaml.safe_load((folder / found).read_text())
    rules = json.loads((folder / "renovate.json").read_text())["packageRules"]
    assert {manager for rule in rules for manager in rule["matchManagers"]} == {"copier", "pep621"}


def test_this_repository_keeps_the_same_rules(pytestconfig: pytest.Config) -> None:
    """Its own workflows: the matrix in parts, and what boots every night."""
    own = workflows_of(ROOT)
    run(program("zizmor"), "--offline", "--no-config", "--persona=auditor", ROOT / ".github")
    run(program("check-jsonschema"), "--builtin-schema", "vendor.github-workflows", *own)
    assert actionlint(own, pytestconfig.cache.mkdir("actionlint")) == []
    services = sorted((ROOT / "template" / ".github" / "workflows").glob("*"))
    assert len({name for name, _, _ in set(actions([*own, *services]))}) == len(
        set(actions([*own, *services]))
    )
    for name, job, workflow in jobs(own):
        assert workflow["permissions"] == {}, name
        assert job["permissions"] == {"contents": "read"}, name
        assert job["timeout-minutes"], name
    test = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())["jobs"]["test"]
    parts = test["strategy"]["matrix"]["part"]
    assert test["steps"][-1]["run"] == f'uv run pytest --shard "$PART/{len(parts)}"'
    assert sorted(str(c) for part in parts for c in shard(part, len(parts))) == sorted(
        map(str, COMBINATIONS)
    )
    nightly = yaml.safe_load((ROOT / ".github" / "workflows" / "nightly.yml").read_text())
    matrix = nightly["jobs"]["boot"]["strategy"]["matrix"]
    config = yaml.safe_load((ROOT / "copier.yml").read_text())
    assert matrix["python"] == config["python_version"]["choices"]
    assert tuple(matrix["resolution"]) == RESOLUTIONS


def test_a_service_boots_and_every_route_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    """The nightly run, for one; its lower bounds and Pythons are tried there only."""
    assert main(["sqlite+example"]) == 0, capsys.readouterr().out
    assert capsys.readouterr().out.endswith("1 passed, 0 failed\n")
