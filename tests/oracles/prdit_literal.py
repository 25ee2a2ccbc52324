"""The published model once more, literally from SPEC §1-§3, as functions of a state dict: oracle of tests and benchmarks.

Imports nothing of prdit_models, knows no option of ours and has no tricks: what a researcher would write down from the text.
Works in the dtype of the weights; float64 is the oracle, float32 the speed baseline. Gradients flow.

`numbers` is a mapping with volume_size, patch_size, stride, padding, hidden_size, num_heads, depth, in_channels, out_channels.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

State = Mapping[str, Tensor]
Numbers = Mapping[str, Any]


def extract_patches(x: Tensor, p: int, s: int, k: int) -> Tensor:
    """§1.1: (B, C, S, S, S) -> (B, N, C·p³)."""
    if k:
        x = F.pad(x, (k, k, k, k, k, k), mode="reflect")
    windows = x.unfold(2, p, s).unfold(3, p, s).unfold(4, p, s)  # (B, C, G, G, G, p, p, p)
    b, c, g = windows.shape[:3]
    return windows.permute(0, 2, 3, 4, 1, 5, 6, 7).reshape(b, g**3, c * p**3)


def unpatchify(tokens: Tensor, out_channels: int, s: int, size: int) -> Tensor:
    """§1.2: (B, N, s³·O), channel fastest -> (B, O, S, S, S)."""
    b, g = tokens.shape[0], size // s
    blocks = tokens.reshape(b, g, g, g, s, s, s, out_channels)
    return torch.einsum("bxyzijko->boxiyjzk", blocks).reshape(b, out_channels, size, size, size)


def linear(state: State, key: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{key}.weight"], state.get(f"{key}.bias"))


def layer_norm(x: Tensor, eps: float, state: State | None = None, key: str = "") -> Tensor:
    weight, bias = (state[f"{key}.weight"], state[f"{key}.bias"]) if state else (None, None)
    return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)


def rms_norm(x: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale[:, None]) + shift[:, None]


def gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def timestep_features(state: State, prefix: str, t: Tensor) -> Tensor:
    """§1.3; the table is float32 in every dtype, as published."""
    frequencies = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32) / 128)
    arguments = t.to(torch.float32)[:, None] * frequencies[None]
    table = torch.cat([torch.cos(arguments), torch.sin(arguments)], dim=-1)
    return F.silu(linear(state, f"{prefix}mlp.0", table.to(state[f"{prefix}mlp.0.weight"].dtype)))


def local_denoiser(state: State, prefix: str, x: Tensor, condition: Tensor, variant: str) -> Tensor:
    """§1.4 (§3.2 for tf)."""
    modulation = linear(state, f"{prefix}adaLN_modulation.1", F.silu(condition))
    norm: Callable[[Tensor], Tensor] = lambda z: layer_norm(z, 1e-6)  # noqa: E731
    if variant == "tf":
        modulation, norm = rms_norm(modulation), rms_norm
    shift1, scale1, shift2, scale2, shift3, scale3 = modulation.chunk(6, dim=1)

    def mlp(name: str, z: Tensor) -> Tensor:
        a = F.silu(linear(state, f"{prefix}{name}.fc1_g", z)) * linear(state, f"{prefix}{name}.fc1_x", z)
        return linear(state, f"{prefix}{name}.fc2", layer_norm(a, 1e-5, state, f"{prefix}{name}.norm"))

    h = mlp("mlp1", modulate(norm(x), shift1, scale1))
    h = mlp("mlp2", modulate(norm(h), shift2, scale2))
    h = modulate(h + x, shift3, scale3)
    return linear(state, f"{prefix}linear_final", h)


def position_table(grid: int, hidden: int) -> Tensor:
    """§1.6."""
    c = (torch.arange(grid, dtype=torch.float32) + 0.5) / grid
    f = 2 * math.pi * (0.95 * grid / 2) ** torch.linspace(0, 1, hidden // 6, dtype=torch.float32)
    rows = []
    for d in range(grid):
        for h in range(grid):
            for w in range(grid):
                rows.append(torch.cat([part for i in (w, h, d) for part in (torch.sin(c[i] * f), torch.cos(c[i] * f))]))
    return torch.stack(rows)


def attention(state: State, prefix: str, x: Tensor, heads: int) -> Tensor:
    b, n, width = x.shape
    qkv = linear(state, f"{prefix}qkv", x).reshape(b, n, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
    return linear(state, f"{prefix}proj", mixed.transpose(1, 2).reshape(b, n, width))


def embed(state: State, numbers: Numbers, x: Tensor, table: Tensor | None = None) -> Tensor:
    """§1.5, 1 and 2."""
    key = "fine.patch_embedder"
    e = linear(state, f"{key}.fc2", gelu_tanh(linear(state, f"{key}.fc1", x))) + linear(state, f"{key}.skip", x)
    e = layer_norm(e, 1e-5, state, f"{key}.norm")
    if table is None:
        table = position_table(numbers["volume_size"] // numbers["stride"], numbers["hidden_size"])
    return e + table.to(e.dtype)


def block(state: State, index: int, h: Tensor, condition: Tensor, heads: int, variant: str) -> Tensor:
    """§1.5, 3."""
    prefix = f"fine.blocks.{index}."
    modulation = linear(state, f"{prefix}adaLN_modulation.1", F.silu(condition))
    norm: Callable[[Tensor], Tensor] = lambda z: layer_norm(z, 1e-6)  # noqa: E731
    if variant == "tf":
        modulation, norm = rms_norm(modulation), rms_norm
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.chunk(6, dim=1)
    h = h + gate_a[:, None] * attention(state, f"{prefix}attn.", modulate(norm(h), shift_a, scale_a), heads)
    z = modulate(norm(h), shift_m, scale_m)
    return h + gate_m[:, None] * linear(state, f"{prefix}mlp.fc2", gelu_tanh(linear(state, f"{prefix}mlp.fc1", z)))


def batch_times(t: Tensor | float, batch: int) -> Tensor:
    t = torch.as_tensor(t)
    return t.expand(batch) if t.dim() == 0 else t


def branches(
    state: State, numbers: Numbers, x: Tensor, t: Tensor | float, variant: str = "prdit", table: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """§1.7: the volumes of both branches; the coarse one without gradient where there is a fine one."""
    p, s, k, depth = (numbers[name] for name in ("patch_size", "stride", "padding", "depth"))
    tokens = extract_patches(x, p, s, k)
    u = timestep_features(state, "t_embedder.", batch_times(t, x.shape[0]))
    with torch.set_grad_enabled(torch.is_grad_enabled() and depth == 0):
        condition = linear(state, "t_embedder.coarse_head", u)
        coarse = local_denoiser(state, "coarse.mlp_denoise.", tokens, condition, variant)
    fold: Callable[[Tensor], Tensor] = lambda out: unpatchify(  # noqa: E731
        out, numbers["out_channels"], s, numbers["volume_size"]
    )
    if not depth:
        return fold(coarse), None
    condition = linear(state, "t_embedder.fine_head", u)
    h = embed(state, numbers, tokens, table)
    for index in range(depth):
        h = block(state, index, h, condition, numbers["num_heads"], variant)
    shift, scale = linear(state, "fine.final_layer.adaLN_modulation.1", F.silu(condition)).chunk(2, dim=1)
    fine = linear(state, "fine.final_layer.linear", modulate(layer_norm(h, 1e-6), shift, scale))
    return fold(coarse), fold(fine)


def forward(
    state: State, numbers: Numbers, x: Tensor, t: Tensor | float, variant: str = "prdit", table: Tensor | None = None
) -> Tensor:
    """The model's output (B, O, S, S, S); `variant` is prdit (also flow matching, O = 1) or tf."""
    coarse, fine = branches(state, numbers, x, t, variant, table)
    return coarse if fine is None else coarse + fine


def from_config(numbers: Numbers) -> Callable[[State, Tensor, Tensor | float], Tensor]:
    """`forward` with its position table made once, as a module's buffer would be."""
    table = None
    if numbers["depth"]:
        table = position_table(numbers["volume_size"] // numbers["stride"], numbers["hidden_size"])
    return lambda state, x, t: forward(state, numbers, x, t, table=table)


def encode(
    state: State, numbers: Numbers, x: Tensor, t: Tensor | float = 50, last: int = 5, variant: str = "prdit"
) -> Tensor:
    """§1.7: tokens after block index `last`."""
    u = timestep_features(state, "t_embedder.", batch_times(t, x.shape[0]))
    condition = linear(state, "t_embedder.fine_head", u)
    h = embed(state, numbers, extract_patches(x, numbers["patch_size"], numbers["stride"], numbers["padding"]))
    for index in range(last + 1):
        h = block(state, index, h, condition, numbers["num_heads"], variant)
    return h


def forward_sr(state: State, head: Numbers, base: Numbers, x: Tensor, t: Tensor | float) -> Tensor:
    """§3.3: noise and image at the full size; keys `base.*`, `t_embedder_sr.*`, `sr.mlp_denoise.*`."""
    below = {key.removeprefix("base."): value for key, value in state.items() if key.startswith("base.")}
    estimate = forward(below, base, x[:, :, ::2, ::2, ::2], t)
    noise, image = estimate[:, :1], estimate[:, 1:]
    noise = noise.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
    image = F.interpolate(image, scale_factor=2, mode="trilinear", align_corners=False)
    u = timestep_features(state, "t_embedder_sr.", batch_times(t, x.shape[0]))
    condition = linear(state, "t_embedder_sr.coarse_head", u)
    tokens = extract_patches(x, head["patch_size"], head["stride"], head["padding"])
    added = local_denoiser(state, "sr.mlp_denoise.", tokens, condition, "prdit")
    return torch.cat([noise, image], 1) + unpatchify(added, head["out_channels"], head["stride"], head["volume_size"])


def losses(output: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
    """§2: per-sample noise plus image loss, mean over the batch."""
    return ((output[:, :1] - eps) ** 2).mean() + ((output[:, 1:] - x0) ** 2).mean()


def q_sample(x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """§2."""
    beta = (t.to(torch.float32) / 1000 * (math.pi / 2)).to(x0.dtype)[:, None, None, None, None]
    return torch.cos(beta) * x0 + torch.sin(beta) * eps


def train_step(
    weights: dict[str, Tensor], output: Callable[[State], Tensor], x0: Tensor, eps: Tensor, lr: float, decay: float
) -> tuple[float, dict[str, Tensor], dict[str, Tensor]]:
    """§4, first step from zero moments: loss, clipping to norm 1, AdamW without weight decay, EMA of the result.

    Args:
        weights: all parameters; those with requires_grad are trained.
        output: the model as a function of its weights.
    Returns: (loss, new weights, their EMA).
    """
    loss = losses(output(weights), x0, eps)
    trained = {name: w for name, w in weights.items() if w.requires_grad}
    gradients = dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))
    norm = torch.sqrt(sum(((g.detach() ** 2).sum() for g in gradients.values()), torch.zeros((), dtype=x0.dtype)))
    factor = torch.clamp(1.0 / (norm + 1e-6), max=1.0)
    moved = {name: w.detach().clone() for name, w in weights.items()}
    for name, gradient in gradients.items():
        g = gradient * factor
        first, second = 0.1 * g / (1 - 0.9), 0.001 * g * g / (1 - 0.999)  # bias-corrected moments after one step
        moved[name] = moved[name] - lr * first / (second.sqrt() + 1e-8)
    ema = {name: decay * w.detach() + (1 - decay) * moved[name] for name, w in weights.items()}
    return float(loss.detach()), moved, ema


def initial_std(key: str, shape: tuple[int, ...], gain: float) -> float:
    """§1.8: standard deviation of an initial weight, 0 for a constant one; Xavier uniform has variance 2 g² / (in + out)."""
    zeros = ("adaLN_modulation.1.weight", "mlp_denoise.linear_final.weight", "final_layer.linear.weight")
    if len(shape) == 1 or key.endswith(zeros):
        return 0.0
    if key.startswith("t_embedder."):
        return 0.02
    return (0.1 if "skip" in key else gain) * math.sqrt(2 / sum(shape))


def published_sampler(
    model: Callable[[Tensor, int], Tensor], z: Tensor, n: int, noise: list[Tensor], corrector: bool
) -> tuple[Tensor, Tensor]:
    """§3: (last state, image estimate of the last evaluation); angles and coefficients in float32."""
    skip = 1000 // n
    times = list(range(0, 1000, skip))[::-1]
    draws = iter(noise)
    x, image = z, z
    for i, j in zip(times, [*times[1:], 0], strict=True):
        eps_hat, image = model(x, i).chunk(2, dim=1)
        beta_i, beta_j, beta_p = (
            torch.tensor(v, dtype=torch.float32) / 1000 * (math.pi / 2) for v in (i, j, 2 * j - i)
        )
        f = torch.sin(beta_i) * image - torch.cos(beta_i) * eps_hat
        h = beta_j - beta_i
        if corrector and 2 * j - i > 0:
            a = torch.cos(beta_j) / torch.cos(beta_p)
            x = a * (x - 2 * h * f) + torch.sqrt(torch.clamp(1 - a * a, min=0)) * next(draws)
        else:
            x = x - h * f
    return x, image


def tf_guided_sampler(
    model: Callable[[Tensor, int], Tensor],
    z: Tensor,
    n: int,
    noise: list[Tensor],
    measure: Callable[[Tensor], Tensor],
    y: Tensor,
    strength: float = 0.7,
) -> tuple[Tensor, Tensor]:
    """§3.2 (e), of one volume: (last state, image estimate of the last evaluation); `noise` has std 1.

    The gradient of the residual's norm with respect to the image estimate is taken from the state that the predictor arrives at.
    """
    skip = 1000 // n
    times = list(range(0, 1000, skip))[::-1]
    draws = iter(noise)
    x, image = z, z
    for i, j in zip(times, [*times[1:], 0], strict=True):
        eps_hat, image = model(x, i).chunk(2, dim=1)
        beta_i, beta_j, beta_p = (
            torch.tensor(v, dtype=torch.float32) / 1000 * (math.pi / 2) for v in (i, j, max(i - 4 * (i - j), 0))
        )
        f = torch.sin(beta_i) * image - torch.cos(beta_i) * eps_hat
        h = beta_j - beta_i
        if i - 4 * (i - j) >= 0 and i != 0:
            x = x - 4 * h * f
            if i > 20:
                estimate = image.detach().clone().requires_grad_()
                (gradient,) = torch.autograd.grad(torch.linalg.norm((y - measure(estimate)).flatten()), estimate)
                x = x - strength * 0.5 * (1 + math.cos((1 - i / 1000) * math.pi)) * gradient
            a = torch.cos(beta_j) / torch.cos(beta_p)
            x = a * x + torch.sqrt(torch.clamp(1 - a * a, min=0)) * 0.95 * next(draws)
        else:
            x = x - h * f
    return x, image


def flow_sampler(model: Callable[[Tensor, Tensor], Tensor], z: Tensor, n: int, heun: bool) -> Tensor:
    """§3.1: the state after n steps from t = 0 (noise) to t = 1; the model is given 1000 t."""
    x = z
    for m in range(n):
        velocity = model(x, torch.tensor(1000 * m / n))
        if heun:
            velocity = (velocity + model(x + velocity / n, torch.tensor(1000 * min((m + 1) / n, 1)))) / 2
        x = x + velocity / n
    return x


def flow_loss(model: Callable[[Tensor, Tensor], Tensor], x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """§3.1: mean squared error of the velocity x0 - eps, per sample."""
    share = t[:, None, None, None, None]
    velocity = model((1 - share) * eps + share * x0, 1000 * t)
    return ((velocity - (x0 - eps)) ** 2).mean(dim=(1, 2, 3, 4))
