"""An endpoint fuzzed from its own OpenAPI description, by schemathesis.

Runs of it, with another seed each, until 10,000 requests were sent: valid and invalid bodies,
missing headers, wrong methods. A request has failed when its answer is a 500, or when there is none
within the time that the endpoint promises (`serve.limits.request_s`). Besides, every answer must
have a status, a content type and a body that the description knows, and nothing that it forbids may
be accepted.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.result import Measure, options, report
from benchmarks.serving_processes import Server, environment, heliostat

HANG_S = 10.0
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "unsupported_method",
    "ignored_auth",
)
EXAMPLES = 1500
"""Of each operation in each run, where it has so many."""


def main() -> None:
    """Run the benchmark."""
    parser = options(__doc__ or "", pairs=1)
    parser.add_argument("bundle", help="a bundle of support_templates")
    parser.add_argument("--requests", type=int, default=10_000)
    given = parser.parse_args()
    bundle = str(Path(given.bundle).resolve())
    sent, failures, seed = 0, dict[str, int](), 0
    with heliostat(bundle, "Heliostat", []) as server:
        while sent < given.requests:
            seed += 1
            generated, found = run(server, seed)
            sent += generated
            for name, number in found.items():
                failures[name] = failures.get(name, 0) + number
            print(f"seed {seed}: {sent} requests so far, failures {failures}", flush=True)
    report("fuzz", measures(sent, failures), {"runs": seed, "failures": failures}, given.out)


def run(server: Server, seed: int) -> tuple[int, dict[str, int]]:
    """One run: requests, and failures by kind."""
    base = server.target.url.rsplit("/v1/", 1)[0]
    with tempfile.TemporaryDirectory(prefix="heliostat-fuzz-") as scratch:
        done = subprocess.run(
            [
                *(str(Path(sys.executable).with_name("schemathesis")), "run"),
                f"{base}/openapi.json",
                *("-H", f"Authorization: Bearer {server.key}", "--checks", ",".join(CHECKS)),
                *("--phases", "coverage,fuzzing", "-n", str(EXAMPLES), "--seed", str(seed)),
                *("--continue-on-failure", "--request-timeout", str(HANG_S), "--no-color"),
                *("--suppress-health-check", "all", "--workers", "2"),
            ],
            cwd=scratch,
            env=environment(),
            capture_output=True,
            text=True,
        )
    return counted(done.stdout + done.stderr)


def counted(text: str) -> tuple[int, dict[str, int]]:
    """Requests and failures by kind, from what schemathesis prints."""
    generated = re.search(r"(\d+) generated", text)
    assert generated is not None, text[-3000:]
    failures = re.findall(r"❌ (?:[A-Z]+\d+ )?(.+): (\d+)$", text, re.MULTILINE)
    return int(generated[1]), {name: int(number) for name, number in failures}


def measures(sent: int, failures: dict[str, int]) -> list[Measure]:
    """What the table shows."""

    def of(*words: str) -> int:
        return sum(
            number
            for name, number in failures.items()
            if any(word in name.lower() for word in words)
        )

    faults, hangs = of("server error"), of("timeout", "network", "connection")
    others = sum(failures.values()) - faults - hangs
    return [
        none_of(f"answers with 500, of {sent} fuzzed requests", faults),
        none_of(f"no answer within {HANG_S:g} s, of {sent} fuzzed requests", hangs),
        none_of("answers that the OpenAPI description does not allow", others),
    ]


def none_of(name: str, found: int) -> Measure:
    """Something that must not happen."""
    return Measure(name, None, "", [float(found)], [], "0", found == 0)


if __name__ == "__main__":
    main()
