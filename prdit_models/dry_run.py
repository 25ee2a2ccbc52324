"""A training step or a sampling run on the meta device: what it computes and what it keeps in memory, without doing it.

The network, its loss, its backward pass and the sampler themselves run, and what they keep is counted (`prdit_models.tracing`),
so that the numbers follow the code. Left out: the process itself (Python and PyTorch, 0.3 GiB) and the scans.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from prdit_models.diffusion.cosine import CosineProcess
from prdit_models.diffusion.sampler import Sampler
from prdit_models.diffusion.sampling import sample
from prdit_models.networks.build import Network, build_network
from prdit_models.networks.cascade import RefinedPRDiT, low_frequency_loss
from prdit_models.networks.config import NetworkConfig
from prdit_models.networks.linear import FullPrecisionLinear, Linear
from prdit_models.networks.prdit import trainable_parameters
from prdit_models.tracing import MemoryTrace, PretendDevice

PRECISIONS = ("fp32", "bf16")
# What an allocator holds above tensors that come and go, as a share of them. Of glibc: measured, docs/benchmarks.md (gaps between
# blocks freed in another order than they were made). Of PyTorch's caching CUDA allocator: an assumption.
ALLOCATOR_SHARES = {"cpu": 0.2, "cuda": 0.1}
_SAMPLER_STEPS = 3  # a multistep sampler has all it keeps by then


@dataclass(frozen=True)
class Memory:
    """Bytes at the moment of the peak.

    Attributes:
        weights: of the network, float32.
        gradients: of the trained weights; those of the step before live through the forward pass.
        moments: AdamW's two per trained weight.
        ema: the average of the trained weights.
        activations: all else: batch, what is kept for the backward pass, temporaries.
        allocator: what it holds beyond tensors, see `ALLOCATOR_SHARES`.
    """

    weights: int = 0
    gradients: int = 0
    moments: int = 0
    ema: int = 0
    activations: int = 0
    allocator: int = 0

    @property
    def total(self) -> int:
        """Sum of all."""
        return sum(asdict(self).values())


def meta_network(config: NetworkConfig, *, checkpointing: bool = False) -> Network:
    """The network with shapes but no values; a cascade's base is frozen, as is the local branch of a depth > 0 model."""
    with torch.device("meta"):  # sdpa, because xformers takes no meta tensors; it keeps the same
        return build_network(config, attention="sdpa", checkpointing=checkpointing)


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Numbers of all parameters and of those an optimiser trains."""
    trained = sum(parameter.numel() for parameter in trainable_parameters(model))
    return {"all": sum(parameter.numel() for parameter in model.parameters()), "trainable": trained}


def count_flops(config: NetworkConfig, batch: int, *, training: bool, checkpointing: bool = False) -> int:
    """Floating-point operations of the matrix products of a forward pass or of a training step, two per multiply-add.

    Args:
        config: of the network.
        batch: B.
        training: count the backward pass, too, with what checkpointing recomputes.
        checkpointing: see `PRDiT`.
    """
    model = meta_network(config, checkpointing=checkpointing)
    counter = FlopCounterMode(display=False)
    mode = PretendDevice("cuda", fused_attention=False)  # CUDA's path has no blocks of rows, which take longer to count
    _pretend(model, mode)
    with mode, counter, torch.set_grad_enabled(training):
        loss = _loss(model, batch, mode)
        if training:
            mode.backward(loss)
    return int(counter.get_total_flops())


def _loss(model: Network, batch: int, mode: PretendDevice) -> Tensor:
    """Loss of one batch, as `tasks.train` computes it."""
    x_t, x0, eps = (_volume(model, batch) for _ in range(3))
    t = torch.empty(batch, dtype=torch.long, device="meta")
    with mode.region():
        if isinstance(model, RefinedPRDiT):
            parts = model(x_t, t, parts=True)
            losses = CosineProcess().losses((parts.upsampled + parts.head).float(), x0, eps)
            return losses["loss"] + low_frequency_loss(parts, model.config.in_channels).mean()
        output = model(x_t, t)
    return CosineProcess().losses(output.float(), x0, eps)["loss"]


def _volume(model: Network, batch: int) -> Tensor:
    return torch.empty(batch, model.config.in_channels, *(model.config.volume_size,) * 3, device="meta")


def train_memory(
    config: NetworkConfig, batch: int, *, precision: str = "fp32", checkpointing: bool = False, device: str = "cpu"
) -> Memory:
    """Peak of a training step with AdamW and EMA, after the first one.

    Args:
        config: of the network.
        batch: B.
        precision: `fp32`, or `bf16` for autocast.
        checkpointing: see `PRDiT`.
        device: `cpu` or `cuda`.
    Raises: ValueError: for an unknown precision or device, or a batch below 1.
    """
    _check(batch, precision)
    model, mode = meta_network(config, checkpointing=checkpointing), PretendDevice(device, bf16=precision == "bf16")
    parameters = trainable_parameters(model)

    def step() -> None:
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)  # of the step before
        loss = _loss(model, batch, mode)
        for parameter in parameters:
            parameter.grad = None
        mode.backward(loss)

    peak = _peak(model, step, mode)
    trained = _bytes(parameters)
    parts = Memory(_bytes(model.parameters()), trained, 2 * trained, trained)
    return _completed(parts, peak + 3 * trained, device)


def sample_memory(config: NetworkConfig, batch: int, *, precision: str = "fp32", device: str = "cpu") -> Memory:
    """Peak of drawing a batch of volumes with the default sampler; see `train_memory`."""
    _check(batch, precision)
    model, mode = meta_network(config), PretendDevice(device, bf16=precision == "bf16")
    model.eval().requires_grad_(False)
    size, channels, sampler = model.config.volume_size, model.config.in_channels, Sampler()
    few = replace(sampler, num_steps=_SAMPLER_STEPS)
    evaluated = 0

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        nonlocal evaluated
        evaluated += 1
        if evaluated < _SAMPLER_STEPS:  # all evaluations are alike
            return torch.empty(batch, model.config.out_channels, *x.shape[2:], device="meta")
        with mode.region():
            return model(x, t)

    def draw() -> None:
        sample(
            denoise,
            CosineProcess(),
            few,
            volume_size=size,
            generators=[torch.Generator()] * batch,  # not drawn from: noise without values
            in_channels=channels,
            device="meta",
            noise_source=partial(torch.empty, device="meta"),
        )

    peak = _peak(model, draw, mode)
    prepared = sampler.num_steps * sum(
        4 * module.out_features
        for name, module in model.named_modules()
        if name.endswith("adaLN_modulation.1") and isinstance(module, nn.Linear)
    )  # modulations of all steps, see PRDiT.prepared
    return _completed(Memory(_bytes(model.parameters())), peak + prepared, device)


def _completed(parts: Memory, total: int, device: str) -> Memory:
    """Parts that are known one by one, with what the total leaves for activations and the allocator's share."""
    activations = max(total - parts.total, 0)
    transient = parts.gradients + parts.moments + activations
    return replace(parts, activations=activations, allocator=int(ALLOCATOR_SHARES[device] * transient))


def _check(batch: int, precision: str = "fp32") -> None:
    if batch < 1:
        raise ValueError(f"batch is {batch}; expected at least 1 volume.")
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; expected one of {list(PRECISIONS)}.")


def _peak(model: Network, work: Callable[[], None], mode: PretendDevice) -> int:
    """Largest number of bytes alive while `work` runs."""
    memory = MemoryTrace()
    memory.hold([*model.parameters(), *model.buffers()])
    _pretend(model, mode)
    with mode, memory:
        work()
    return memory.peak_bytes


def _pretend(model: Network, mode: PretendDevice) -> None:
    """Let all modules hear the pretended device."""
    for module in model.modules():
        if isinstance(module, Linear | FullPrecisionLinear):
            _watch_linear(module, mode)
        else:
            _watch(module, mode)


def _watch(module: nn.Module, mode: PretendDevice) -> None:
    """Let a module ask its tensors for their device, and hear the pretended one."""
    own = module.forward

    def forward(*inputs: Any, **options: Any) -> Any:
        with mode.pretending():
            return own(*inputs, **options)

    module.forward = forward


def _watch_linear(module: nn.Linear, mode: PretendDevice) -> None:
    """Let a layer cast as autocast would, which does not know the meta device."""
    own: Callable[..., Tensor] = module.forward
    full_precision = isinstance(module, FullPrecisionLinear)

    def forward(x: Tensor) -> Tensor:
        with mode.pretending(False, full_precision=full_precision):
            return own(x.to(module.weight.dtype) if full_precision else x)

    module.forward = forward  # type: ignore[method-assign,assignment]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
