"""The list of combinations, as people and CI ask for it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.combinations import (
    COMBINATIONS,
    UnknownCombinationError,
    main,
    parse_combination,
    parse_shard,
    shard,
)
from tests.conftest import RUN_FOLDER
from tests.costs import Costs
from tests.snapshot import ROOT


def test_every_combination_has_one_name_and_one_set_of_answers() -> None:
    assert len({str(c) for c in COMBINATIONS}) == len(COMBINATIONS) == 48
    assert len({tuple(c.answers.items()) for c in COMBINATIONS}) == len(COMBINATIONS)
    assert all(parse_combination(str(c)) == c for c in COMBINATIONS)


def test_the_words_of_a_name_may_come_in_any_order() -> None:
    assert str(parse_combination("example+sqlite")) == "sqlite+example"


def test_an_unknown_name_is_answered_with_near_ones() -> None:
    with pytest.raises(UnknownCombinationError, match=r"near ones: postgresql\+example"):
        parse_combination("postgres+example")


def test_shards_hold_every_combination_once() -> None:
    shards = [c for part in range(1, 4) for c in shard(part, 3)]
    assert sorted(map(str, shards)) == sorted(map(str, COMBINATIONS))


def test_shards_cost_about_the_same() -> None:
    costs = Costs({str(c): 10.0 + 5 * len(c.words) for c in COMBINATIONS} | {"a::b": 100.0})
    loads = [sum(costs.of(str(c)) for c in shard(part, 4, costs)) for part in range(1, 5)]
    # The first has the other tests, too.
    loads[0] += 100.0
    assert max(loads) - min(loads) <= 35.0


def test_what_was_recorded_is_about_what_there_is() -> None:
    """Names that no test has any more would be planned for in vain: run with `--costs-update`."""
    recorded = {name for name in Costs.read().recorded if "::" not in name}
    assert recorded <= set(map(str, COMBINATIONS))
    assert all(cost > 0 for cost in Costs.read().recorded.values())


@pytest.mark.parametrize("text", ["", "1", "0/4", "5/4", "a/b", "-1/2", "1/0"])
def test_a_shard_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="such as 1/4"):
        parse_shard(text)


def test_the_list_for_ci_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "--shard", "1/4"]) == 0
    output = capsys.readouterr().out
    assert output.count("\n") == 1
    assert json.loads(output) == [str(combination) for combination in shard(1, 4)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--combination", "mysql"], "no combination is called 'mysql'"),
        (["--shard", "9/4"], "a shard is PART/PARTS"),
    ],
    ids=str,
)
def test_pytest_refuses_a_wrong_choice_in_one_line(arguments: list[str], message: str) -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-n0", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert message in result.stderr
    assert Path(os.environ[RUN_FOLDER]).is_dir(), "it took what belongs to the run around it"
