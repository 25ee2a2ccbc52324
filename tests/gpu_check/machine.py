"""What the check runs on: card, versions, the rates of its matrix products, and whether TF32 is really off."""

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Iterator

import torch

from prdit_models.cards import peak_tflops
from prdit_models.plan import GIB
from tests.gpu_check.cards import device_name, matmul_tflops
from tests.gpu_check.report import Fact, Row, compared, measured
from tests.gpu_check.setting import Setting, relative_error

# Float32 sums of 1024 products are off by about 1e-6 of the largest; inputs rounded to TF32 (10 bits) by 3e-4.
FLOAT32_PRODUCT = 2e-5
_EDGE = 1024


def rows(setting: Setting) -> Iterator[Row]:
    """Versions, device, rates, TF32."""
    packages = ("numpy", "scipy", "safetensors", "xformers", "triton")
    yield measured("versions", python=platform.python_version(), torch=torch.__version__, **_versions(packages))
    yield measured("device", **_device(setting))
    for precision in setting.precisions:
        yield measured(
            f"matrix products, {precision}",
            measured_tflops=matmul_tflops(setting, precision),
            peak_tflops=peak_tflops(device_name(setting), precision),
        )
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(_EDGE, _EDGE, generator=generator) for _ in range(2))
    error = relative_error(a.to(setting.device) @ b.to(setting.device), a.double() @ b.double())
    yield compared("float32 product, TF32 off", error, FLOAT32_PRODUCT)


def _versions(packages: tuple[str, ...]) -> dict[str, Fact]:
    found: dict[str, Fact] = {}
    for name in packages:
        if importlib.util.find_spec(name) is not None:
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                found[name] = "unknown"
    return found


def _device(setting: Setting) -> dict[str, Fact]:
    if not setting.is_cuda:
        return {"name": "cpu", "threads": torch.get_num_threads(), "cores": os.cpu_count()}
    free, total = torch.cuda.mem_get_info(setting.device)
    major, minor = torch.cuda.get_device_capability(setting.device)
    return {
        "name": device_name(setting),
        "capability": f"{major}.{minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "memory_gib": total / GIB,
        "free_gib": free / GIB,
        "cards": torch.cuda.device_count(),
        "cores": os.cpu_count(),
    }
