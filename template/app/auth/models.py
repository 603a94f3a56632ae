"""The table `refresh_tokens`; a session is a family of them."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, Index, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column
from uuid_utils.compat import uuid7

from app.core.database import Base, partial_unique_index


class RefreshToken(Base):
    """One link of a session: good once, and replaced by its child then.

    A session is the line of tokens with one `family_id`, each the child of the one before. It is
    alive as long as its newest token is neither used nor revoked nor expired; only that one is
    revoked when it ends. Used ones are kept until they expire, so that one that comes back can be
    told from one that never was.
    """

    __tablename__ = "refresh_tokens"
    __table_args__ = (
        # A session never forks; and however often it was refreshed, one row is looked at.
        partial_unique_index(
            "uq_refresh_tokens_family_id_newest",
            "family_id",
            where="used_at IS NULL AND revoked_at IS NULL",
        ),
        # The newest ones of a user are those without `used_at`.
        Index("ix_refresh_tokens_user_id_used_at", "user_id", "used_at"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid7)
    # Version 7: it says when the session began.
    family_id: Mapped[UUID]
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    # The token itself is known to its client only.
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    parent_id: Mapped[UUID | None]
    # Makes this token out of its parent: see `tokens.py`.
    salt: Mapped[bytes | None] = mapped_column(LargeBinary)
    user_agent: Mapped[str | None] = mapped_column(String(255))
    issued_at: Mapped[datetime]
    expires_at: Mapped[datetime] = mapped_column(index=True)
    # However often it is refreshed, the session ends then.
    family_expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
