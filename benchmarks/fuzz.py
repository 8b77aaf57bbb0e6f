"""Requests that are generated from the API's own description, against a running service of either size.

    python -m benchmarks.fuzz --size small > fuzz.json      # SQLite and a folder
    python -m benchmarks.fuzz --size large > fuzz.json      # PostgreSQL and Redis of its own, S3

Schemathesis generates valid and invalid ones, alone and along the links, until --requests have been answered. None may
be answered with 500, or with what the description does not know. Prints one JSON object; the status is 1 when one was,
and the report of Schemathesis is on stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.hostile import SETS
from benchmarks.installation import ROOT, SECRET, Installation
from benchmarks.machine import machine
from benchmarks.published import publish_into
from server.store.db import Database
from server.store.objects import open_objects

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_headers_conformance,response_schema_conformance"
)
UNBOUNDED = {"MDC_KEY_RATE": "", "MDC_REFUSAL_RATE": ""}


def main() -> None:
    """Start the service, send, count."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=["small", "large"], default="small")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first round")
    args = parser.parse_args()
    os.environ.update(UNBOUNDED)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as name, ExitStack() as cleanup:
        installation = Installation(
            args.size, Path(name), cleanup, workers=0
        )  # nothing accepted is condensed
        database = Database(installation.database_url)
        publish_into(database, open_objects(installation.objects_url), SECRET, {"toy": SETS["toy"]})
        database.dispose()
        rounds, failed = 0, 0
        statuses: Counter[str] = Counter()
        while statuses.total() < args.requests and not failed:
            failed = _round(installation, args.seed + rounds)
            rounds += 1
            statuses = _answered(installation)
            print(f"{statuses.total()} of {args.requests} requests", file=sys.stderr, flush=True)
    print(
        json.dumps(
            {
                "what": "generated requests to a running service",
                "size": args.size,
                "machine": machine(),
                "rounds": rounds,
                "requests": statuses.total(),
                "statuses": dict(sorted(statuses.items())),
                "passed": not failed and not statuses["500"],
                "seconds": round(time.monotonic() - begun),
            },
            indent=1,
        )
    )
    sys.exit(bool(failed or statuses["500"]))


def _round(installation: Installation, seed: int) -> int:
    """Some thousand requests; the exit status of Schemathesis."""
    command = [
        *(str(Path(sys.executable).parent / "schemathesis"), "run", str(ROOT / "docs/openapi.json")),
        *("--url", installation.url, "--header", f"Authorization: Bearer {installation.key}"),
        *("--phases", "coverage,fuzzing,stateful", "--checks", CHECKS, "--continue-on-failure"),
        *("--max-examples", "60", "--seed", str(seed), "--generation-database", "none"),
        *("--request-timeout", "30", "--warnings", "off", "--no-color", "--suppress-health-check", "all"),
        *("--exclude-operation-id", "streamJobEvents"),  # it never ends
        # Soon there would be no key left, and no set.
        *("--exclude-operation-id", "revokeKey", "--exclude-operation-id", "withdrawSet"),
    ]
    environment = os.environ | {
        "SCHEMATHESIS_HOOKS": "tests.server.schemathesis_hooks",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(
        command, stdout=sys.stderr, check=False, cwd=installation.folder, env=environment
    ).returncode


def _answered(installation: Installation) -> Counter[str]:
    """How many requests the API has answered, by status."""
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(httpx.get(f"{installation.url}/metrics").text):
        for sample in family.samples:
            if sample.name == "mdc_requests_total":
                found[sample.labels["status"]] += int(sample.value)
    return found


if __name__ == "__main__":
    main()
