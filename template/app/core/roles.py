"""The roles of users: the one place to add yours; template updates leave this file alone.

Keep USER, whom everybody is at first, and ADMIN, who gives the others their roles. A new role needs
a migration, which `just migration` writes, and the API's description anew (`just openapi`).
"""

from collections.abc import Mapping
from enum import StrEnum


class Role(StrEnum):
    """What somebody may do; a later role may do whatever an earlier one may."""

    USER = "user"
    ADMIN = "admin"

    def includes(self, other: "Role") -> bool:
        """Whether this role may do what `other` may."""
        ranks = list(Role)
        return ranks.index(self) >= ranks.index(other)


# What the API's description says of a role that routes ask for.
DESCRIPTIONS: Mapping[Role, str] = {Role.ADMIN: "Manage the accounts of others."}
