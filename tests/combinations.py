"""Every valid combination of the answers that change Python code, and the list of them for CI."""

import argparse
import difflib
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.costs import Costs


@dataclass(frozen=True)
class Switch:
    """A feature that is on or off."""

    word: str
    """What a combination's name calls it."""
    question: str
    needs: str | None = None
    """The word of the feature without which this one is refused."""


DATABASES = ("postgresql", "sqlite")
# A new feature is one line here.
SWITCHES = (
    Switch("redis", "use_redis"),
    Switch("arq", "use_arq", needs="redis"),
    Switch("jwt", "use_jwt"),
    Switch("websockets", "use_websockets"),
    Switch("example", "include_example"),
)


class UnknownCombinationError(Exception):
    """No valid combination has that name; the message lists near ones."""


@dataclass(frozen=True)
class Combination:
    """One valid set of answers."""

    database: str
    words: frozenset[str]
    """The features that are on, by their `Switch.word`."""

    def __str__(self) -> str:
        """Its name, such as `postgresql+example`."""
        return "+".join((self.database, *(s.word for s in SWITCHES if s.word in self.words)))

    @property
    def answers(self) -> dict[str, str | bool]:
        """What to answer to the template's questions."""
        switches = {switch.question: switch.word in self.words for switch in SWITCHES}
        return {"database": self.database, **switches}

    @property
    def is_extreme(self) -> bool:
        """Whether everything is on, or nothing, with PostgreSQL.

        SQLite's driver ends a thread with each connection, which coverage does not survive with
        greenlets: docs/explanation/decisions/0014-coverage-and-threads-that-end.md.
        """
        return self.database == "postgresql" and len(self.words) in (0, len(SWITCHES))

    @property
    def routes(self) -> frozenset[str]:
        """The features that its API differs by; tests/test_combination.py compares."""
        # Exports of orders are made by jobs.
        without = {"redis"} if "example" in self.words else {"redis", "arq"}
        return self.words - without

    @property
    def fuzzed(self) -> "Combination":
        """The one whose contract is fuzzed, of all with the same routes on the same database.

        On PostgreSQL it is the largest and on SQLite the smallest: each set of routes is tried with
        and without Redis.
        """
        same = [c for c in COMBINATIONS if (c.database, c.routes) == (self.database, self.routes)]
        choose = max if self.database == "postgresql" else min
        return choose(same, key=lambda combination: len(combination.words))

    @property
    def is_valid(self) -> bool:
        """Whether every feature has what it needs."""
        on = (switch for switch in SWITCHES if switch.word in self.words)
        return all(switch.needs is None or switch.needs in self.words for switch in on)


def _all() -> Iterator[Combination]:
    words = [switch.word for switch in SWITCHES]
    # The largest first: it takes longest, so that the workers finish at about the same time.
    for size in range(len(words), -1, -1):
        for chosen in itertools.combinations(words, size):
            for database in DATABASES:
                combination = Combination(database, frozenset(chosen))
                if combination.is_valid:
                    yield combination


COMBINATIONS = tuple(_all())


def parse_combination(name: str) -> Combination:
    """The combination called `name`, such as `postgresql+example`, in any order of its words.

    Raises:
        UnknownCombinationError: with the names that come near.
    """
    wanted = sorted(name.split("+"))
    for combination in COMBINATIONS:
        if sorted(str(combination).split("+")) == wanted:
            return combination
    names = [str(combination) for combination in COMBINATIONS]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.3) or names[:3]
    raise UnknownCombinationError(
        f"no combination is called {name!r}; near ones: {', '.join(near)}"
    )


def parse_shard(text: str) -> tuple[int, int]:
    """The part and the number of parts in a text such as `1/4`.

    Raises:
        ValueError: if it is something else.
    """
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise ValueError(f"a shard is PART/PARTS, such as 1/4, not {text!r}")
    return int(part), int(parts)


def shard(part: int, parts: int, costs: Costs | None = None) -> Sequence[Combination]:
    """The combinations of one of `parts` shards that take about the same time.

    Each goes to the shard that has least to do so far, the costliest first. The first shard has
    all the tests that belong to no combination.
    """
    costs = costs or Costs.read()
    loads = [0.0] * parts
    loads[0] = costs.of_others(set(map(str, COMBINATIONS)))
    chosen: list[Combination] = []
    for combination in sorted(COMBINATIONS, key=lambda each: costs.of(str(each)), reverse=True):
        least = loads.index(min(loads))
        loads[least] += costs.of(str(combination))
        if least == part - 1:
            chosen.append(combination)
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the names of the combinations; with `--json` as one list for a CI matrix."""
    parser = argparse.ArgumentParser(prog="python -m tests.combinations", description=main.__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON list of strings")
    parser.add_argument("--shard", metavar="PART/PARTS", help="only a part of them, such as 1/4")
    options = parser.parse_args(arguments)
    try:
        part, parts = parse_shard(options.shard or "1/1")
    except ValueError as error:
        parser.error(str(error))
    names = [str(combination) for combination in shard(part, parts)]
    sys.stdout.write(json.dumps(names) if options.json else "\n".join(names))
    sys.stdout.write("\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
