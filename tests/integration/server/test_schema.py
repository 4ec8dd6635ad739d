"""The server against requests that schemathesis makes of its OpenAPI description."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("schemathesis") is None, reason="the extra `fuzz` is missing"),
]
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_schema_conformance,negative_data_rejection,unsupported_method"
)


def test_every_generated_request_is_answered_as_described(running: Any, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    with running() as server:
        address = f"http://127.0.0.1:{server.client.port}/openapi.json"
        command = [sys.executable, "-m", "schemathesis.cli", "run", address, "--checks", CHECKS]
        command += ["--max-examples", "300", "--seed", "0", "--generation-database", "none"]
        command += ["--suppress-health-check", "too_slow"]
        command += ["--report", "json", "--report-json-path", str(report)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert server.client.get("/livez").status == 200
    print(done.stdout[-3000:])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert json.loads(report.read_text())
