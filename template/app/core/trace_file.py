"""Where traces are kept in development: a small file that the processes of one machine share."""

import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

FILE: Final = Path(__file__).parents[2] / ".dev" / "traces.jsonl"
"""A line of JSON for each span, in the order of their ends."""

MAX_BYTES: Final = 1_000_000
"""Past it the older half is dropped: a hundred requests or so are left."""


class TraceFile(io.StringIO):
    """Collects lines, and appends them to the file at each flush."""

    def flush(self) -> None:
        """Append what was written since the last one."""
        lines = self.getvalue().encode()
        self.seek(0)
        self.truncate()
        if not lines:
            return
        FILE.parent.mkdir(exist_ok=True)
        # In one call, so that lines of several processes do not mix.
        with FILE.open("ab", buffering=0) as file:
            file.write(lines)
            size = file.tell()
        if size > MAX_BYTES:
            _shorten()


def _shorten() -> None:
    # What another process appends meanwhile may be lost, which is no loss in development.
    kept = FILE.read_bytes()[-MAX_BYTES // 2 :].partition(b"\n")[2]
    shorter = FILE.with_suffix(f".{os.getpid()}")
    shorter.write_bytes(kept)
    shorter.replace(FILE)


def to_line(span: "ReadableSpan") -> str:
    """What the page shows of a span: nothing that a collector would not get.

    Times are in microseconds since the epoch, which JavaScript's numbers can hold.
    """
    context, parent = span.get_span_context(), span.parent
    return (
        json.dumps(
            {
                "trace": f"{context.trace_id:032x}" if context else "",
                "id": f"{context.span_id:016x}" if context else "",
                "parent": f"{parent.span_id:016x}" if parent else None,
                "name": span.name,
                "kind": span.kind.name.lower(),
                "start": (span.start_time or 0) // 1000,
                "end": (span.end_time or 0) // 1000,
                "failed": not span.status.is_ok and not span.status.is_unset,
                "attributes": dict(span.attributes or {}),
            },
            default=str,
        )
        + "\n"
    )
