"""Runs one part in this process: `python -m tests.gpu_check.worker MODULE --rows FILE --seconds S`; `--probe` looks at the device.

Rows are appended to the file as they are found, one JSON object per line, so that those before a crash are kept. The last line says
how the part ended.
"""

import argparse
import importlib
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from tests.gpu_check.report import row_to_dict

MIN_TORCH = (2, 10)
_TRACEBACK_LINES = 12


def probe() -> dict[str, Any]:
    """Torch's version, the GPU, whether the product runs at all (on a CPU), and what is missing."""
    import torch

    found: dict[str, Any] = {"torch": str(torch.__version__), "gpu": None, "runs": True, "problem": ""}
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < MIN_TORCH:
        found["runs"] = False
        found["problem"] = (
            f"torch is {torch.__version__}; expected {MIN_TORCH[0]}.{MIN_TORCH[1]} or newer. Upgrade torch."
        )
    elif torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name(0)
    else:
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a build without CUDA"
        found["problem"] = (
            f"No CUDA device: torch {torch.__version__} ({build}) sees none. Run it on a machine with an NVIDIA GPU and a CUDA "
            "build of torch (nvidia-smi should list the card), or shrink it to the CPU: --tiny."
        )
    return found


def run(module: str, *, tiny: bool, seconds: float, rows: Path) -> None:
    """Append a part's rows to a file, and how it ended."""
    deadline = time.monotonic() + seconds
    with rows.open("a", encoding="utf-8") as stream:

        def write(entry: dict[str, Any]) -> None:
            stream.write(json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n")
            stream.flush()

        try:
            import torch

            from tests.gpu_check.setting import Setting

            if tiny:
                torch.set_num_threads(1)  # on arrays of this size threads only wait for each other
            torch.set_float32_matmul_precision("highest")  # TF32 off in every product, whatever the default becomes
            device = torch.device("cpu" if tiny else "cuda:0")
            for row in importlib.import_module(module).rows(Setting(device, tiny, deadline)):
                write({"row": row_to_dict(row)})
        except Exception as error:  # noqa: BLE001 (whatever it is, it is this part's result)
            last = traceback.format_exc().splitlines()[-_TRACEBACK_LINES:]
            write({"end": f"{type(error).__name__}: {error}\n" + "\n".join(last)})
        else:
            write({"end": ""})


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.gpu_check.worker")
    parser.add_argument("module", nargs="?")
    parser.add_argument("--probe", action="store_true")
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    if given.probe:
        sys.stdout.write(json.dumps(probe()) + "\n")
    else:
        run(given.module, tiny=given.tiny, seconds=given.seconds, rows=given.rows)


if __name__ == "__main__":
    main()
