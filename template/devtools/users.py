"""`just create-admin`: the first admin's account, on the database of `just dev`."""

import sys

from app import create_admin
from devtools.dev import DATA, development_environment


def main() -> None:
    """Migrate, then make the account; see `app.create_admin`."""
    with development_environment(DATA):
        create_admin.main(sys.argv[1:])


if __name__ == "__main__":
    main()
