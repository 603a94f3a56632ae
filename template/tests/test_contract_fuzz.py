"""Whatever is sent to the running service, it answers as its OpenAPI description says."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import anyio

from tests.fixtures.caller import Caller
from tests.fixtures.server import Serve

_CHECKS = (
    "allow_header_conformance",
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "unsupported_method",
    "use_after_free",
    "ignored_auth",
)
# Besides the cases at the edges of each schema, which are most of them.
_EXAMPLES_FOR_EACH_OPERATION = 4
# It takes about 15 s, and several times that on a busy machine.
_TIME_LIMIT_SECONDS = 240.0


async def test_no_request_gets_an_undescribed_answer(
    serve: Serve, trusted_caller: Caller, tmp_path: Path
) -> None:
    command = [
        # Ended by SIGABRT, it prints where it hangs.
        *(sys.executable, "-X", "faulthandler", "-m", "schemathesis.cli", "run"),
        *("--checks", ",".join(_CHECKS)),
        *("--max-examples", str(_EXAMPLES_FOR_EACH_OPERATION)),
        *("--request-timeout", "30"),
        # The same requests in every run: a failure is a change of the code.
        "--generation-deterministic",
        "--no-color",
        *(f"--header={name}: {value}" for name, value in trusted_caller.headers.items()),
        *(f"--exclude-path={path}" for path in trusted_caller.never_sent),
    ]
    report = tmp_path / "report.txt"
    # Nothing of the service runs in it; and where threads end, as here, coverage's support of
    # greenlets has been seen to loop for ever (coverage 7.17, greenlet 3.5).
    environment = {name: value for name, value in os.environ.items() if "COVERAGE" not in name}
    # The description is not served in production.
    async with serve(env={"ENVIRONMENT": "test", "LOG_LEVEL": "WARNING"}) as server:
        with report.open("wb") as output:
            process = await anyio.open_process(
                [*command, f"{server.url}/openapi.json"],
                # It leaves files behind.
                cwd=tmp_path,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            with anyio.move_on_after(_TIME_LIMIT_SECONDS):
                await process.wait()
            if process.returncode is None:
                process.send_signal(signal.SIGABRT)
            status = await process.wait()
        logs = server.logs()

    assert status == 0, f"{report.read_text(errors='replace')}\n{logs}"
