"""Matrix products of linear layers on the CPU, by the library that is fastest on the CPU at hand.

PyTorch's own choice is MKL, which on some AMD processors reaches half of what oneDNN does, and on others more. Which one it is
here is measured once a machine and logged. The choice is kept (`~/.cache/prdit/gemm.json`): processes that chose differently would
differ in the last bits, and a resumed training from its first part. Frozen weights are also packed for the product once (a copy,
as large as the weights). Values agree to float rounding; CUDA tensors and reduced precision go to PyTorch untouched.
"""

import functools
import json
import logging
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

logger = logging.getLogger("prdit.models.gemm")

BACKENDS = ("auto", "mkl", "onednn")
_PROBE = (512, 768, 1536)  # rows, in, out: a block of tokens through a middle-sized layer, 5 ms
_PROBE_REPEATS = 15
_ADVANTAGE = 1.15  # what oneDNN must gain before it replaces PyTorch's default
_MIN_ROWS_PACKED = 64  # below, a product is bound by reading the weights

_requested = "auto"


def use_gemm(backend: str) -> None:
    """Choose the library for this process: `auto` measures.

    Raises: ValueError: for an unknown name or a library this build of PyTorch lacks.
    """
    global _requested
    if backend not in BACKENDS:
        raise ValueError(f"Unknown GEMM backend {backend!r}; expected one of {list(BACKENDS)}.")
    if backend == "onednn" and not torch.backends.mkldnn.is_available():
        raise ValueError("This build of PyTorch has no oneDNN; use gemm backend 'auto' or 'mkl'.")
    _requested = backend
    chosen_gemm.cache_clear()


@functools.cache
def chosen_gemm() -> str:
    """`mkl` (PyTorch's default) or `onednn`: as asked, as found earlier on this machine, or measured now."""
    if not torch.backends.mkldnn.is_available():
        return "mkl"
    if _requested != "auto":
        logger.info("GEMM backend: %s (as asked)", _requested)
        return _requested
    machine = f"{_processor()}, torch {torch.__version__}"
    known = _read_choices()
    if known.get(machine) in ("mkl", "onednn"):
        logger.info("GEMM backend: %s (measured earlier, %s)", known[machine], _choices_file())
        return known[machine]
    rates = measured_rates(*_PROBE)
    chosen = "onednn" if rates["onednn"] > _ADVANTAGE * rates["mkl"] else "mkl"
    shown = ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in rates.items())
    logger.info("GEMM backend: %s (%s, %d threads)", chosen, shown, torch.get_num_threads())
    _write_choices(known | {machine: chosen})
    return chosen


def _choices_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prdit" / "gemm.json"


def _read_choices() -> dict[str, str]:
    try:
        found = json.loads(_choices_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_choices(choices: dict[str, str]) -> None:
    path = _choices_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps(choices, indent=1), encoding="utf-8")
        fresh.replace(path)
    except OSError as error:
        logger.warning("GEMM choice not kept (%s): each process will measure anew", error)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    told = [
        line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "cpu family", "model\t"))
    ]
    return " ".join(told[:3]) or platform.machine()


@torch.no_grad()
def measured_rates(rows: int, width: int, out: int, repeats: int = _PROBE_REPEATS) -> dict[str, float]:
    """GFLOP/s of one product (rows, width)·(width, out) by library, packed weights; the best of `repeats`, taken in turns.

    The best, not the median: what else runs on the machine can only slow a product down.
    """
    generator = torch.Generator().manual_seed(0)  # the process's own random numbers are not touched
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in ((rows, width), (out, width), (out,)))
    products = {name: _packed_product(name, weight, bias, rows) for name in ("mkl", "onednn")}
    seconds = dict.fromkeys(products, float("inf"))
    for _ in range(repeats + 1):
        for name, product in products.items():
            began = time.perf_counter()
            product(x)
            seconds[name] = min(seconds[name], time.perf_counter() - began)
    return {name: 2e-9 * rows * width * out / least for name, least in seconds.items()}


def _packed_product(backend: str, weight: Tensor, bias: Tensor | None, rows: int) -> Callable[[Tensor], Tensor]:
    """The product with weights packed for about `rows` rows."""
    if backend == "onednn":
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    if torch.backends.mkl.is_available():
        packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
        return lambda x: torch.ops.mkl._mkl_linear(x, packed, weight, bias, rows)
    return lambda x: F.linear(x, weight, bias)


class _OneDNNLinear(torch.autograd.Function):
    """x·Wᵀ + b and its two gradients through oneDNN, weights not packed: they change at every step."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return out

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad  # type: ignore[attr-defined]
        rows = grad.reshape(-1, grad.shape[-1])
        grad_x = grad_weight = grad_bias = None
        product = torch.ops.mkldnn._linear_pointwise
        if needs_x:
            grad_x = product(rows, weight.t().contiguous(), None, "none", [], "").view(x.shape)
        if needs_weight:
            columns = x.reshape(-1, x.shape[-1]).t().contiguous()
            grad_weight = product(rows.t().contiguous(), columns, None, "none", [], "")
        if needs_bias:
            grad_bias = rows.sum(0)
        return grad_x, grad_weight, grad_bias


class Linear(nn.Linear):
    """`torch.nn.Linear` with the product done by the chosen library; same parameters, same keys."""

    _packed: tuple[tuple[int, int, int], Callable[[Tensor], Tensor]] | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Map (…, in) to (…, out)."""
        if not _is_plain_float32(input) or torch.compiler.is_compiling():
            return F.linear(input, self.weight, self.bias)
        rows = input.numel() // max(input.shape[-1], 1)
        if rows < _MIN_ROWS_PACKED:
            return F.linear(input, self.weight, self.bias)
        if not self.weight.requires_grad and not (torch.is_grad_enabled() and input.requires_grad):
            return self._frozen_product(rows)(input)
        if chosen_gemm() == "onednn":
            out: Tensor = _OneDNNLinear.apply(input, self.weight, self.bias)
            return out
        return F.linear(input, self.weight, self.bias)

    def _frozen_product(self, rows: int) -> Callable[[Tensor], Tensor]:
        """The product with packed weights; packed anew when the weights or the number of rows have changed."""
        key = (self.weight.data_ptr(), self.weight._version, rows)
        if self._packed is None or self._packed[0] != key:
            bias = None if self.bias is None else self.bias.detach()
            self._packed = (key, _packed_product(chosen_gemm(), self.weight.detach(), bias, rows))
        return self._packed[1]

    def __getstate__(self) -> dict[str, object]:  # packed weights are neither copied nor sent to workers
        return {key: value for key, value in self.__dict__.items() if key != "_packed"}


def _is_plain_float32(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
