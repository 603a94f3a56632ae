"""What holds for the template itself: no code at render, no dead branch, pattern or budget."""

import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pathspec
import yaml
from copier import run_copy
from copier._jinja_ext import SandboxedEnvironment
from jinja2 import StrictUndefined

from tests.branches import conditions, jinja_files, recorded_branches
from tests.combinations import COMBINATIONS, Combination, parse_combination
from tests.questions import BAD_ANSWERS, CONTRADICTIONS, GOOD_ANSWERS, refusal
from tests.rendering import Renderer
from tests.snapshot import ROOT, template_files
from tests.update.repository import TemplateRepository
from tests.update.team import update

BUDGET = Path(__file__).parent / "budget.toml"


def read_config() -> dict[str, Any]:
    config = yaml.safe_load((ROOT / "copier.yml").read_text())
    assert isinstance(config, dict)
    return config


def test_nothing_of_the_template_asks_for_trust() -> None:
    wants_trust = {"_jinja_extensions", "_tasks", "_migrations"}
    assert wants_trust.isdisjoint(read_config())


def test_every_condition_goes_both_ways(
    template: Path, folder: Path, repository: TemplateRepository
) -> None:
    with recorded_branches() as recorder:
        renderer = Renderer(template, folder / "branches")
        for answers in GOOD_ANSWERS:
            service = renderer.render(answers)
        for answers, _ in BAD_ANSWERS + CONTRADICTIONS:
            refusal(template, answers)
        for quiet in (True, False):
            refusal(template, {"use_arq": True}, quiet=quiet)
            refusal(template, {"project_slug": "other"}, folder=service, quiet=quiet)
        updated = repository.copy(repository.head, folder / "branches-updated")
        # From an address, not from a folder.
        address = f"git+file://{repository.folder}"
        run_copy(address, folder / "by-address", defaults=True, quiet=True, vcs_ref=repository.head)
        # Not to the release that is made up: its lines are not those of the working tree.
        update(updated, version=repository.head)
        # Combinations are without the files of `deployment`.
        for name in (
            "postgresql",
            "postgresql+redis",
            "postgresql+websockets",
            str(COMBINATIONS[0]),
        ):
            for server in ("uvicorn", "gunicorn"):
                answers = {"deployment": "kubernetes", "server": server}
                renderer.render({**parse_combination(name).answers, **answers})
        # The largest, the smallest and so on: a few of them are enough.
        for combination in both_ends(COMBINATIONS):
            renderer.render(combination.answers)
            if not recorder.one_way():
                break
        unread = set(jinja_files(template)) - {where[0] for where in recorder.outcomes}
    environment = SandboxedEnvironment()
    for name in sorted(unread):
        # Files without a condition are not among the outcomes.
        assert conditions(environment.parse((template / name).read_text())) == [], f"{name}: unused"
    assert recorder.one_way() == []


def both_ends(combinations: Sequence[Combination]) -> Iterator[Combination]:
    """Each of them once, from the ends of the list to its middle."""
    left = list(combinations)
    while left:
        yield left.pop(0)
        left.reverse()


def test_every_pattern_of_the_manifest_matches_a_file() -> None:
    environment = SandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters["fileglob"] = lambda _: []
    new = {"dst_path": "", "answers_file": ""}
    names = [n.as_posix() for n in template_files() if n.parts[0] == "template"]
    files = [name.removeprefix("template/").removesuffix(".jinja") for name in names]
    patterns = set()
    for entry in read_config()["_exclude"]:
        for combination in COMBINATIONS:
            for operation in ("copy", "update"):
                rendered = environment.from_string(entry).render(
                    combination.answers, _copier_operation=operation, _copier_conf=new
                )
                patterns |= {line for line in rendered.splitlines() if line.startswith("/")}
    assert patterns
    for pattern in patterns:
        assert not pattern.endswith("/"), f"{pattern} leaves an empty folder"
        spec = pathspec.PathSpec.from_lines("gitignore", [pattern])
        assert any(spec.match_files(files)), f"{pattern} matches no file of the template"


def test_conditions_stay_within_their_budget() -> None:
    environment = SandboxedEnvironment()
    names = [n for n in template_files() if n.parts[0] == "template" and n.suffix == ".jinja"]
    counts = {
        name.relative_to("template").as_posix(): len(
            conditions(environment.parse((ROOT / name).read_text()))
        )
        for name in names
    }
    used = {name: count for name, count in counts.items() if count}
    budget = tomllib.loads(BUDGET.read_text())["conditions"]
    assert used == budget, (
        "a feature is whole files, not lines: prefer a seam; if there is none, change "
        f"{BUDGET.relative_to(ROOT)} in the same commit"
    )


def test_jinja_tags_stand_alone_and_strip_nothing() -> None:
    for name in template_files():
        if name.parts[0] not in {"template", "extensions"} or name.suffix != ".jinja":
            continue
        for number, line in enumerate((ROOT / name).read_text().splitlines(), start=1):
            where = f"{name}:{number}: {line}"
            assert not any(mark in line for mark in ("{%-", "-%}", "{{-", "-}}")), where
            if "{%" in line:
                assert line.strip().startswith("{%"), where
                assert line.strip().endswith(("%}", "{", "[")), where
