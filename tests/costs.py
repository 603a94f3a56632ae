"""What the tests are known to cost: recorded by `--costs-update`, to plan with, not to check."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

RECORDED = Path(__file__).parent / "costs.json"
# A single test that nobody has measured is one of the many quick ones.
_QUICK_SECONDS = 0.5


@dataclass(frozen=True)
class Costs:
    """Processor time in seconds: of a combination by its name, of other tests by their node id."""

    recorded: Mapping[str, float]

    @classmethod
    def read(cls) -> "Costs":
        """What is recorded, if anything is."""
        return cls(json.loads(RECORDED.read_text()) if RECORDED.exists() else {})

    def write(self) -> None:
        """Record them in place of what was, without the quick ones."""
        slow = {k: round(v, 1) for k, v in self.recorded.items() if v >= 2 * _QUICK_SECONDS}
        RECORDED.write_text(json.dumps(dict(sorted(slow.items())), indent=2) + "\n")

    def of(self, group: str) -> float:
        """What a group of tests costs; a combination that nobody has measured may be large."""
        if group in self.recorded:
            return self.recorded[group]
        return _QUICK_SECONDS if "::" in group else max(self.recorded.values(), default=1.0)

    def of_others(self, combinations: Collection[str]) -> float:
        """What all recorded groups cost that are no combination's."""
        return sum(cost for name, cost in self.recorded.items() if name not in combinations)
