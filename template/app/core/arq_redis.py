"""ARQ's client of Redis, confined to keys that start with the service's prefix."""

from typing import Any

from arq.connections import ArqRedis
from redis.asyncio.client import Pipeline

# Of ARQ's own keys; it has them as constants, the same for all services.
_ARQ = "arq:"


class ConfinedArqRedis(ArqRedis):
    """Puts a prefix in front of ARQ's own keys, since a user may be limited to what starts with it.

    Args:
        pool: The connections.
        prefix: What to put there; ids of jobs and names of queues must not start as ARQ's keys do.
        options: As for `ArqRedis`.
    """

    def __init__(self, pool: Any, prefix: str, **options: Any) -> None:
        super().__init__(pool, **options)
        self._prefix = prefix

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run a command, as redis-py's methods ask for it."""
        args = _confined(self._prefix, args)
        return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """Make a pipeline that does the same."""
        pipe = _ConfinedPipeline(
            self.connection_pool, self.response_callbacks, transaction, shard_hint
        )
        pipe.prefix = self._prefix
        return pipe


class _ConfinedPipeline(Pipeline):
    prefix: str

    def execute_command(self, *args: Any, **options: Any) -> Any:
        return super().execute_command(*_confined(self.prefix, args), **options)


def _confined(prefix: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    # Whatever else ARQ sends are commands, numbers, ids and jobs as bytes.
    return tuple(
        f"{prefix}{arg}" if isinstance(arg, str) and arg.startswith(_ARQ) else arg for arg in args
    )
