"""`python -m tests.gpu_check`: the table goes to stderr as it is found, one JSON object to stdout.

Exit code 0: all that ran agrees. 1: a part failed or differs, or none ran.
2: cannot run here (no GPU but no `--tiny`, no torch, old Python).
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 (who runs this may not have made our environment)
    sys.stderr.write(
        f"gpu-check needs Python 3.11 or newer, this is {sys.version_info[0]}.{sys.version_info[1]}. "
        "Name one: make gpu-check PYTHON=...\n"
    )
    raise SystemExit(2)

import argparse
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.gpu_check.parts import PARTS, Part
from tests.gpu_check.report import BAD, PartResult, Row, part_lines, part_to_dict, row_from_dict, summary_line

REPOSITORY = Path(__file__).resolve().parents[2]
BUDGET_S = 480.0
LEAST_S = 10.0  # a part that has less left is not begun
WIND_DOWN_S = 5.0  # a worker begins no row so shortly before it would be stopped
FORMAT_VERSION = 1
_STDERR_LINES = 15


def run_part(name: str, part: Part, *, tiny: bool, seconds: float) -> PartResult:
    """Run one part in a process of its own, for at most some seconds."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        rows, errors = Path(folder, "rows"), Path(folder, "stderr")
        rows.touch()
        command = [sys.executable, "-m", "tests.gpu_check.worker", part.module, "--rows", str(rows)]
        command += ["--seconds", str(max(seconds - WIND_DOWN_S, 1.0)), *(["--tiny"] if tiny else [])]
        with errors.open("wb") as stream:
            process = subprocess.Popen(
                command, cwd=REPOSITORY, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, start_new_session=True
            )
            try:
                code: int | None = process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                if process.poll() is None:
                    _kill_group(process)
        found, end = _read_rows(rows)
        last = errors.read_text(encoding="utf-8", errors="replace").splitlines()[-_STDERR_LINES:]
    if code is None:
        end = f"stopped after {seconds:.0f} s: it hung, or is too slow here"
    elif end is None:
        end = "\n".join([f"its process died ({_how_it_ended(code)})", *last])
    return PartResult(name, part.title, found, time.monotonic() - began, end, failed=bool(end))


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    """End a worker that is still there, with the compilers it may have started: all of its own session."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _read_rows(path: Path) -> tuple[tuple[Row, ...], str | None]:
    """A worker's rows, and its last line (None if it did not get that far)."""
    rows, end = [], None
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # an incomplete line of a worker that died
        if "row" in entry:
            rows.append(row_from_dict(entry["row"]))
        else:
            end = entry["end"]
    return tuple(rows), end


def _how_it_ended(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def run_parts(parts: Mapping[str, Part], *, tiny: bool, deadline: float) -> list[PartResult]:
    """Run parts one after the other up to a time of `time.monotonic`; the table goes to stderr."""
    results: list[PartResult] = []
    for name, part in parts.items():
        left = deadline - time.monotonic()
        if left < LEAST_S:
            results.append(PartResult(name, part.title, (), 0.0, "skipped: budget used up"))
        else:
            results.append(run_part(name, part, tiny=tiny, seconds=min(left, part.limit_s)))
        sys.stderr.write("\n".join(part_lines(results[-1])) + "\n")
        sys.stderr.flush()
    return results


def probe() -> dict[str, Any]:
    """What the worker says about this machine, or why it cannot."""
    command = [sys.executable, "-m", "tests.gpu_check.worker", "--probe"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        problem = (
            f"{sys.executable} cannot load torch: {reason}. gpu-check needs torch >= 2.10, numpy, scipy and safetensors; "
            "name a Python that has them: make gpu-check PYTHON=..."
        )
        return {"torch": None, "gpu": None, "runs": False, "problem": problem}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(arguments: Sequence[str] | None = None, parts: Mapping[str, Part] = PARTS) -> int:
    """Run the check; returns the exit code."""
    parser = argparse.ArgumentParser(prog="gpu-check", description=__doc__)
    parser.add_argument(
        "--tiny", action="store_true", help="shrunk to the CPU: the same code in a minute, no GPU needed"
    )
    parser.add_argument("--only", action="append", choices=list(parts), help="this part (can be given again)")
    parser.add_argument("--json", type=_new_file, help="write the JSON object to this file, too")
    parser.add_argument("--budget-s", type=_seconds, default=BUDGET_S, help=f"seconds for all (default {BUDGET_S:.0f})")
    given = parser.parse_args(arguments)
    began = time.monotonic()
    machine = probe()
    can_run = machine["runs"] and (given.tiny or machine["gpu"] is not None)
    results: list[PartResult] = []
    if can_run:
        chosen = {name: part for name, part in parts.items() if not given.only or name in given.only}
        results = run_parts(chosen, tiny=given.tiny, deadline=began + given.budget_s)
        code = int(any(result.verdict in BAD for result in results) or not any(result.rows for result in results))
        sys.stderr.write(summary_line(results, time.monotonic() - began) + "\n")
    else:
        code = 2
        sys.stderr.write(f"gpu-check: {machine['problem']}\n")
    found = {
        "gpu_check": FORMAT_VERSION,
        "exit_code": code,
        "tiny": given.tiny,
        "gpu": None if given.tiny else machine["gpu"],
        "torch": machine["torch"],
        "seconds": round(time.monotonic() - began, 2),
        "budget_s": given.budget_s,
        **({} if can_run else {"problem": machine["problem"]}),
        "parts": {result.name: part_to_dict(result) for result in results},
    }
    text = json.dumps(found, ensure_ascii=False, allow_nan=False)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
    if given.json:
        given.json.write_text(text + "\n", encoding="utf-8")
    return code


def _new_file(text: str) -> Path:
    """A file to write, whose folder exists: checked before minutes are spent."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
    return path


def _seconds(text: str) -> float:
    seconds = float(text)
    if not LEAST_S <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"expected at least {LEAST_S:.0f} seconds, got {text}")
    return seconds


if __name__ == "__main__":
    raise SystemExit(main())
