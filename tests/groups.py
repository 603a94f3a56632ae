"""What one worker of pytest-xdist runs at a stretch, because its tests share what costs."""

from xdist.scheduler import LoadScopeScheduling

STEPS_FILE = "tests/test_combination.py"
# Each has one service for all of its tests, or a browser.
WHOLE_FILES = ("tests/test_browser.py", "tests/test_environments.py")


def group_of(nodeid: str) -> str:
    """The combination whose step a test is, the file that stays together, or the test alone.

    Only a combination's name has no `::` in it.
    """
    path, _, rest = nodeid.partition("::")
    if path == STEPS_FILE and "[" in rest:
        return rest.partition("[")[2].removesuffix("]")
    return f"{path}::" if path in WHOLE_FILES else nodeid


# pytest-xdist has a mark for this, which writes groups into node ids; pytest 9.2 does not let it.
class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Gives each group to one worker, in the order in which they were collected."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
