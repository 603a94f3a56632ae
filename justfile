# List the recipes.
default:
    @just --list --unsorted

# Render every combination, check each and run its own tests; arguments are pytest's.
[positional-arguments]
test *arguments:
    uv run pytest "$@"

# Do that for one combination, such as postgresql+example.
[positional-arguments]
combination name *arguments:
    uv run pytest --combination "$@"

# Boot every combination under its own server and call every route; see `just boot --help`.
[positional-arguments]
boot *arguments:
    uv run python -m tests.boot "$@"

# List the combinations.
combinations:
    @uv run python -m tests.combinations

# Render the working tree into a folder; answers follow, such as database=sqlite.
render folder *answers:
    uv run copier copy --vcs-ref HEAD --defaults {{ prepend("--data ", answers) }} . {{ quote(folder) }}

# Take the pictures of the pages of development anew, in Chromium.
screenshots:
    SCREENSHOTS=docs/screenshots uv run pytest -n0 tests/test_browser.py -k "internet or colours"

# Accept which files each combination has now, and what updates of each release come to.
snapshots:
    uv run pytest tests/test_combination.py tests/update/test_just_update.py -k "as_recorded or loses" --snapshot-update

# Format and lint the harness and check its types; the tests check it too.
lint:
    uv run ruff format tests
    uv run ruff check tests
    uv run mypy
