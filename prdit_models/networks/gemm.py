"""Matrix products of linear layers on the CPU, by the library that is fastest on the CPU at hand.

PyTorch's own choice is MKL, which on some AMD processors reaches half of what oneDNN does, and on others more. Which one it is
here is measured once a machine and logged. The choice is kept (`~/.cache/prdit/gemm.json`): processes that chose differently would
differ in the last bits, and a resumed training from its first part. Frozen weights are also packed for the product once (a copy,
as large as the weights; under bfloat16 autocast half as large, and not cast anew at every call). Values agree to float rounding;
CUDA tensors, tensors without memory and traced code go to PyTorch untouched, and so does everything where a build of PyTorch
lacks the operators used here, which are not public.
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
_ADVANTAGE = 1.05  # what oneDNN must gain before it replaces PyTorch's default: twice the spread of the measurement
MIN_ROWS_PACKED = 64  # below, a product is bound by reading the weights
_GELU_SLOPE = 1.5957691216057308  # 2·sqrt(2/π)
_GELU_CUBIC = 0.044715

Product = Callable[[Tensor, bool], Tensor]  # (x, whether a GELU follows)

_requested = "auto"


def use_gemm(backend: str) -> None:
    """Choose the library for this process: `auto` measures.

    Raises: ValueError: for an unknown name or a library this build of PyTorch lacks.
    """
    global _requested
    if backend not in BACKENDS:
        raise ValueError(f"Unknown GEMM backend {backend!r}; expected one of {list(BACKENDS)}.")
    if backend == "onednn" and not has_onednn():
        raise ValueError("This build of PyTorch has no oneDNN; use gemm backend 'auto' or 'mkl'.")
    _requested = backend
    chosen_gemm.cache_clear()


@functools.cache
def chosen_gemm() -> str:
    """`mkl` (PyTorch's default) or `onednn`: as asked, as found earlier on this machine, or measured now."""
    if not has_onednn():
        return "mkl"
    if _requested != "auto":
        logger.info("GEMM backend: %s (as asked)", _requested)
        return _requested
    machine = f"{_processor()}, torch {torch.__version__}, gain {_ADVANTAGE}"
    known = _read_choices()
    if known.get(machine) in ("mkl", "onednn"):
        logger.info("GEMM backend: %s (measured earlier, %s)", known[machine], _choices_file())
        return known[machine]
    rates = _undisturbed_rates()
    chosen = "onednn" if rates["onednn"] > _ADVANTAGE * rates["mkl"] else "mkl"
    shown = ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in rates.items())
    logger.info("GEMM backend: %s (%s a thread)", chosen, shown)
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


def has_onednn() -> bool:
    """Whether this build has oneDNN and the operators used here."""
    operators = ("_linear_pointwise", "_reorder_linear_weight")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in operators)


@functools.cache
def has_bfloat16_products() -> bool:
    """Whether oneDNN multiplies bfloat16 on this CPU."""
    known = has_onednn() and hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported")
    return known and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _undisturbed_rates() -> dict[str, float]:
    """`measured_rates` of one thread by its own CPU time: on a busy machine the wall clock would choose at random."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return measured_rates(*_PROBE, clock=time.thread_time)
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def measured_rates(
    rows: int,
    width: int,
    out: int,
    *,
    repeats: int = _PROBE_REPEATS,
    clock: Callable[[], float] = time.perf_counter,
    dtype: torch.dtype = torch.float32,
) -> dict[str, float]:
    """GFLOP/s of one product (rows, width)·(width, out) by library, packed weights; the best of `repeats`, taken in turns.

    The best, not the median: what else runs on the machine can only slow a product down. MKL is left out in bfloat16.
    """
    generator = torch.Generator().manual_seed(0)  # the process's own random numbers are not touched
    shapes = ((rows, width), (out, width), (out,))
    x, weight, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    names = ("mkl", "onednn") if dtype == torch.float32 else ("onednn",)
    products = {name: _packed_product(name, weight, bias, rows) for name in names}
    seconds = dict.fromkeys(products, float("inf"))
    for _ in range(repeats + 1):
        for name, product in products.items():
            began = clock()
            product(x, False)
            seconds[name] = min(seconds[name], clock() - began)
    return {name: 2e-9 * rows * width * out / least for name, least in seconds.items()}


def _packed_product(backend: str, weight: Tensor, bias: Tensor | None, rows: int) -> Product:
    """The product with weights packed for about `rows` rows."""
    if backend == "onednn":
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)

        def by_onednn(x: Tensor, gelu: bool) -> Tensor:
            out: Tensor = torch.ops.mkldnn._linear_pointwise(
                x, packed, bias, "gelu" if gelu else "none", [], "tanh" if gelu else ""
            )
            return out

        return by_onednn
    if torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear"):
        packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)

        def by_mkl(x: Tensor, gelu: bool) -> Tensor:
            out: Tensor = torch.ops.mkl._mkl_linear(x, packed, weight, bias, rows)
            return gelu_tanh(out) if gelu else out

        return by_mkl

    def by_pytorch(x: Tensor, gelu: bool) -> Tensor:
        out = F.linear(x, weight, bias)
        return gelu_tanh(out) if gelu else out

    return by_pytorch


def gelu_tanh(x: Tensor) -> Tensor:
    """Tanh-approximated GELU, as `x·sigmoid(2u)` where no gradient is kept: the same function, five times as fast on a CPU."""
    if torch.is_grad_enabled() or x.is_cuda or torch.compiler.is_compiling():
        return F.gelu(x, approximate="tanh")
    gate = torch.addcmul(x, x * x, x, value=_GELU_CUBIC).mul_(_GELU_SLOPE).sigmoid_()
    return gate.mul_(x)


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
        product = torch.ops.mkldnn._linear_pointwise  # takes transposed views: it reorders both sides anyway, faster
        if needs_x:
            grad_x = product(rows, weight.t(), None, "none", [], "").view(x.shape)
        if needs_weight:
            grad_weight = product(rows.t(), x.reshape(-1, x.shape[-1]).t(), None, "none", [], "")
        if needs_bias:
            grad_bias = rows.sum(0)
        return grad_x, grad_weight, grad_bias


class Linear(nn.Linear):
    """`torch.nn.Linear` with the product done by the chosen library; same parameters, same keys."""

    _packed: tuple[tuple[object, ...], Product, tuple[Tensor, ...]] | None = None

    def forward(self, input: Tensor, *, gelu: bool = False) -> Tensor:
        """Map (…, in) to (…, out), through a tanh-approximated GELU if asked (a library may do both at once)."""
        rows = input.numel() // max(input.shape[-1], 1)
        dtype = _product_dtype(input) if rows >= MIN_ROWS_PACKED else None
        frozen = not self.weight.requires_grad and not (torch.is_grad_enabled() and input.requires_grad)
        frozen = frozen and not self.weight.is_inference()  # inference tensors do not tell when they change
        if dtype is not None and frozen:
            return self._frozen_product(rows, dtype)(input.to(dtype), gelu)
        out: Tensor
        if dtype == torch.float32 and chosen_gemm() == "onednn":
            out = _OneDNNLinear.apply(input, self.weight, self.bias)
        else:
            out = F.linear(input, self.weight, self.bias)
        return gelu_tanh(out) if gelu else out

    def _frozen_product(self, rows: int, dtype: torch.dtype) -> Product:
        """The product with packed weights; packed anew when the weights (or for MKL the number of rows) have changed.

        Changes are seen by address and version counter; in-place writes through `weight.data` cannot be seen.
        """
        backend = "onednn" if dtype == torch.bfloat16 else chosen_gemm()
        state = [(part.data_ptr(), part._version) for part in (self.weight, self.bias) if part is not None]
        key = (backend, dtype, rows if backend == "mkl" else None, *state)
        if self._packed is None or self._packed[0] != key:
            bias = None if self.bias is None else self.bias.detach().to(dtype)
            # the tensors stay referenced: a new one could otherwise come to lie at an old one's address
            held = tuple(part.detach() for part in (self.weight, self.bias) if part is not None)
            self._packed = (key, _packed_product(backend, self.weight.detach().to(dtype), bias, rows), held)
        return self._packed[1]

    def __getstate__(self) -> dict[str, object]:  # packed weights are neither copied nor sent to workers
        return {key: value for key, value in self.__dict__.items() if key != "_packed"}


class FullPrecisionLinear(Linear):
    """A `Linear` that autocast leaves alone, for the few rows every token depends on: time and modulations.

    Rounding them would move all tokens the same way, and casting their weights would take longer than the product.
    """

    def forward(self, input: Tensor, *, gelu: bool = False) -> Tensor:
        """Map (…, in) to (…, out) in the weights' precision."""
        if input.is_meta:  # autocast does not know the device
            return super().forward(input, gelu=gelu)
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.to(self.weight.dtype), gelu=gelu)


def _product_dtype(x: Tensor) -> torch.dtype | None:
    """In which precision a product of x is ours to do: float32, bfloat16 under autocast, None for PyTorch's own."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    if not torch.is_autocast_enabled("cpu"):
        return torch.float32 if x.dtype == torch.float32 else None
    ours = torch.get_autocast_dtype("cpu") == torch.bfloat16 and x.dtype in (torch.float32, torch.bfloat16)
    return torch.bfloat16 if ours and has_bfloat16_products() else None
