"""Whatever is sent to the running service, it answers as its OpenAPI description says."""

import json
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import anyio
import httpx2

from devtools.openapi import operations
from tests.fixtures.caller import Caller
from tests.fixtures.server import Serve

# Not those of methods that a path lacks: beside `DELETE /books/{book_id}` there may well be a
# `GET /books/statistics`, whose path then has a DELETE that its description does not show.
_CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "use_after_free",
    "ignored_auth",
)
# Besides the cases at the edges of each schema, which are most of them.
_EXAMPLES_FOR_EACH_OPERATION = 4
# It takes about 15 s, and several times that on a busy machine.
_TIME_LIMIT_SECONDS = 240.0
# The service with stand-ins for others that it calls.
_APP = "tests.fuzzed_service:create_app"


async def test_no_request_gets_an_undescribed_answer(
    serve: Serve, trusted_caller: Caller, tmp_path: Path
) -> None:
    report = tmp_path / "report.txt"
    configuration = tmp_path / "schemathesis.toml"
    command = [
        # Ended by SIGABRT, it prints where it hangs.
        *(sys.executable, "-X", "faulthandler", "-m", "schemathesis.cli"),
        *("--config-file", str(configuration), "run"),
        *("--checks", ",".join(_CHECKS)),
        *("--max-examples", str(_EXAMPLES_FOR_EACH_OPERATION)),
        *("--request-timeout", "30"),
        # The same requests in every run: a failure is a change of the code.
        "--generation-deterministic",
        "--no-color",
        *(f"--header={name}: {value}" for name, value in trusted_caller.headers.items()),
        *(f"--exclude-path={path}" for path in trusted_caller.never_sent),
    ]
    # Nothing of the service runs in it; and where threads end, as here, coverage's support of
    # greenlets has been seen to loop for ever (coverage 7.17, greenlet 3.5).
    environment = {name: value for name, value in os.environ.items() if "COVERAGE" not in name}
    # The description is not served in production.
    async with serve(env={"ENVIRONMENT": "test", "LOG_LEVEL": "WARNING"}, app=_APP) as server:
        async with httpx2.AsyncClient(base_url=server.url) as client:
            schema = (await client.get("/openapi.json")).json()
        configuration.write_text(_allow_described_outages(schema))
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


def test_only_an_operation_that_describes_an_outage_may_answer_with_one() -> None:
    described: dict[str, Any] = {"responses": {"200": {}, "503": {}}}
    schema = {"paths": {"/a": {"get": described, "post": {"responses": {"200": {}}}}}}
    [allowed] = tomllib.loads(_allow_described_outages(schema))["operations"]
    assert (allowed["include-method"], allowed["include-path"]) == ("GET", "/a")
    assert "503" in allowed["checks"]["not_a_server_error"]["expected-statuses"]


def _allow_described_outages(schema: dict[str, Any]) -> str:
    """Configure Schemathesis for operations that describe a 503: what they need may be away."""
    return "".join(
        f"""
[[operations]]
include-path = {json.dumps(path)}
include-method = "{method.upper()}"
checks.not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "503"]
"""
        for path, method, operation in operations(schema)
        if "503" in operation["responses"]
    )
