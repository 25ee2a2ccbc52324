"""Forward process, training steps, samplers and EMA against the recorded arrays."""

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prdit_models.diffusion.cosine import CosineProcess
from prdit_models.diffusion.flow import FlowProcess
from prdit_models.diffusion.sampling import Sampler, SampleResult, sample
from prdit_models.diffusion.schedule import plan, respaced_times
from prdit_models.ema import ema_decay, ema_update
from prdit_models.networks.prdit import PRDiT, trainable_parameters
from tests.parity.measure import Measure, close, exact, relative, relative_l2
from tests.parity.placement import device_in_force
from tests.parity.sets import Entry, arrays, build, entries, side_file, tensor

PUBLISHED = CosineProcess(noise_std=0.5, num_steps=1000)


def check_q_sample(folder: Path, entry: Entry) -> list[Measure]:
    stored, tolerance = arrays(folder, entry), entry["tolerance"]
    x_t = PUBLISHED.q_sample(tensor(stored["x0"]), tensor(stored["t"]), tensor(stored["eps"]))
    return [close("x_t", x_t, stored["x_t"], tolerance["suggested_atol"], tolerance["suggested_rtol"])]


def check_noise_scale(folder: Path, entry: Entry) -> list[Measure]:
    noise = PUBLISHED.noise((1 << 18,), torch.Generator().manual_seed(3))
    return [
        close("std of 2^18 draws", float(noise.std()), PUBLISHED.noise_std, 4 * 0.5 / np.sqrt(2 << 18)),
        close("std the published code showed on few draws", float(noise.std()), entry["std_measured"], 0.02),
    ]


def check_respacing(folder: Path, entry: Entry) -> list[Measure]:
    recorded = side_file(folder, entry)
    total = recorded["num_timesteps"]
    measures = []
    for label, row in recorded["sequences"].items():
        times = respaced_times(int(label), total)[::-1]
        found = [len(times), times[-1], times[: len(row["head"])], times[-len(row["tail"]) :]]
        expected = [row["n_steps_actual"], row["first_t"], row["head"], row["tail"]]
        measures.append(exact(f"n={label}", found, expected))
    for label in recorded["errors"]:
        try:
            respaced_times(int(label), total)
        except ValueError:
            measures.append(Measure(f"n={label} is refused", 0.0, 0.0))
        else:
            measures.append(Measure(f"n={label} is refused", 1.0, 0.0))
    return measures


def check_coefficients(folder: Path, entry: Entry) -> list[Measure]:
    stored, atol = arrays(folder, entry), entry["tolerance"]["atol_same_float32_order"]
    measures = []
    for label in sorted({match.group(1) for name in stored if (match := re.match(r"(n\d+)_t$", name))}):
        steps = plan(Sampler("predictor-corrector", int(label[1:]), "published"))
        measures.append(exact(f"{label} times", np.array([int(step.t) for step in steps]), stored[f"{label}_t"]))
        for name in ("sin", "cos", "alpha", "noise"):
            found = np.array([getattr(step, name) for step in steps])
            measures.append(close(f"{label} {name}", found, stored[f"{label}_{name}"], atol))
    return measures


def _trajectory(
    folder: Path, entry: Entry, process: CosineProcess | FlowProcess, sampler: Sampler, stored: dict[str, np.ndarray]
) -> tuple[SampleResult, Tensor, list[float], int]:
    """(result, states, times, unused draws): states are read off the model's inputs, so the sampler itself keeps only one."""
    args, model = entry["args"], build(folder, entry)
    states: list[Tensor] = []
    times: list[float] = []

    def recording(x: Tensor, t: Tensor) -> Tensor:
        states.append(x.clone())
        times.append(float(t))
        return model(x, t)

    draws = iter([stored["z"], *stored.get("noise", [])[: entry.get("noise_draws_used", 0)]])
    result = sample(
        recording,
        process,
        sampler,
        volume_size=args["input_size"],
        generators=[torch.Generator() for _ in stored["z"]],
        in_channels=args["in_channels"],
        device=device_in_force(),
        noise_source=lambda _shape: tensor(next(draws)),
    )
    return result, torch.stack([*states, result.x]), times, len(list(draws))


def _published_sampler(args: dict[str, Any]) -> Sampler:
    name = "predictor-corrector" if args["new_sampling"] else "euler"
    return Sampler(name, args["num_sampling_steps"], "published")


def check_sampler(folder: Path, entry: Entry) -> list[Measure]:
    stored, tolerance = arrays(folder, entry), entry["tolerance"]
    sampler = _published_sampler(entry["args"])
    result, trajectory, times, unused = _trajectory(folder, entry, PUBLISHED, sampler, stored)
    last, image = tolerance["xs_last"], tolerance["x0"]
    return [
        exact("visited times", [int(t) for t in times], stored["t_visited"].tolist()),
        exact("evaluations announced", PUBLISHED.evaluations(sampler), len(times)),
        exact("noise draws left over", unused, 0),
        exact("states", len(trajectory), entry["len_xs"]),
        # intermediate states are larger than the last, so relative rounding is taken on the trajectory's own scale
        close("states", trajectory[tensor(stored["xs_index"])], stored["xs"], _state_atol(stored["xs"], last), 1e-5),
        close("last state", result.x, stored["xs"][-1], last["suggested_atol"], last["suggested_rtol"]),
        close("x0", result.x0, stored["x0"], image["suggested_atol"], image["suggested_rtol"]),
    ]


def check_tf_sampler(folder: Path, entry: Entry) -> list[Measure]:
    stored, tolerance = arrays(folder, entry), entry["tolerance"]
    atol, rtol = tolerance["suggested_atol"], tolerance["suggested_rtol"]
    process = CosineProcess(noise_std=1.0)
    sampler = _published_sampler(entry["args"])
    result, trajectory, _, unused = _trajectory(folder, entry, process, sampler, stored)
    return [
        exact("noise draws left over", unused, 0),
        close("states", trajectory, stored["xs"], atol, rtol),
        close("x0", result.x0, stored["x0"], atol, rtol),
    ]


def check_flow_sampler(folder: Path, entry: Entry) -> list[Measure]:
    stored, args, tolerance = arrays(folder, entry), entry["args"], entry["tolerance"]
    each = 2 if args["solver"] == "heun" else 1
    sampler = Sampler(args["solver"], each * args["num_steps"])
    result, trajectory, times, _ = _trajectory(folder, entry, FlowProcess(), sampler, stored)
    atol, rtol = tolerance["suggested_atol"], tolerance["suggested_rtol"]
    states = torch.cat([trajectory[:-1:each], trajectory[-1:]])  # Heun's second evaluations are not states
    return [
        exact("evaluations", len(times), entry["nfe"]),
        exact("evaluations announced", FlowProcess().evaluations(sampler), entry["nfe"]),
        close(
            "states", states, stored["trajectory"], _state_atol(stored["trajectory"], {"suggested_atol": atol}), rtol
        ),
        close("x", result.x, stored["x"], atol, rtol),
    ]


@torch.no_grad()
def check_flow_loss(folder: Path, entry: Entry) -> list[Measure]:
    stored, tolerance = arrays(folder, entry), entry["tolerance"]
    siblings = {
        found["weights"]["base_seed"]: found for found in entries(folder).values() if found["id"].startswith("fm_euler")
    }
    model, process = build(folder, siblings[entry["weights"]["base_seed"]]), FlowProcess()
    x0, eps, t = (tensor(stored[name]) for name in ("x_data", "x_noise", "t"))
    x_t = process.q_sample(x0, t, eps)
    half = torch.full_like(t, entry["args"]["t_value"])
    x_half = process.q_sample(x0, half, eps)
    found = {
        "x_t": x_t,
        "velocity": x0 - eps,
        "loss": process.sample_losses(model(x_t, process.model_time(t)), x0, eps),
        "x_t_half": x_half,
        "x_data_hat_half": process.reconstruct(x_half, model(x_half, process.model_time(half)), half),
    }
    atol, rtol = tolerance["suggested_atol"], tolerance["suggested_rtol"]
    return [close(name, value, stored[name], atol, rtol) for name, value in found.items()]


def _state_atol(states: np.ndarray, last: dict[str, float]) -> float:
    scale = float(np.abs(states).max() / np.abs(states[-1]).max())
    return last["suggested_atol"] * max(1.0, scale)


def check_ema(folder: Path, entry: Entry) -> list[Measure]:
    stored, atol = arrays(folder, entry), entry["tolerance"]["suggested_atol"]
    measures = []
    for name, decay in (("ema_after", ema_decay(0, 0.9999, warmup=False)), ("after_decay0", 0.0)):
        average = tensor(stored["ema_before"]).clone()
        ema_update([average], [tensor(stored["param"])], decay)
        measures.append(close(name, average, stored[name], atol))
    bias = torch.zeros(stored["bias_after_from_0_to_1"].shape)
    ema_update([bias], [torch.ones_like(bias)], 0.9999)
    return [*measures, close("bias from 0 to 1", bias, stored["bias_after_from_0_to_1"], atol)]


def _loss_measures(model: PRDiT, entry: Entry, stored: dict[str, np.ndarray]) -> list[Measure]:
    tolerance = entry["tolerance"]
    x0, eps, t = (tensor(stored[name][0]) for name in ("x0", "eps", "t"))
    output = model(PUBLISHED.q_sample(x0, t, eps), t)
    noise, image = PUBLISHED.sample_losses(output, x0, eps)
    PUBLISHED.losses(output, x0, eps)["loss"].backward()
    measures = [
        close("noise loss per volume", noise, stored["noise_loss"], 0.0, tolerance["loss_rtol"]),
        close("image loss per volume", image, stored["img_loss"], 0.0, tolerance["loss_rtol"]),
    ]
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    measures.append(exact("parameters with gradient", sorted(gradients), sorted(entry["grad_norms"])))
    rtol = tolerance["grad_suggested_rel_l2"]
    for name, gradient in gradients.items():
        measures.append(relative(f"|grad| {name}", float(gradient.norm()), entry["grad_norms"][name], rtol))
        if f"grad/{name}" in stored:
            measures.append(relative_l2(f"grad {name}", gradient, stored[f"grad/{name}"], rtol))
    model.zero_grad(set_to_none=True)
    return measures


def check_train(folder: Path, entry: Entry) -> list[Measure]:
    """Losses and gradients of the first batch, then the recorded steps: AdamW, clipping, EMA."""
    stored, args, tolerance = arrays(folder, entry), entry["args"], entry["tolerance"]
    model = build(folder, entry)
    measures = _loss_measures(model, entry, stored)
    initial = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    average = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(trainable_parameters(model), lr=args["lr"], weight_decay=0.0)
    norms: dict[str, list[float]] = {name: [] for name in initial}
    for index, (x0, eps, t) in enumerate(zip(*(tensor(stored[name]) for name in ("x0", "eps", "t")), strict=True)):
        optimizer.zero_grad(set_to_none=True)
        losses = PUBLISHED.losses(model(PUBLISHED.q_sample(x0, t, eps), t), x0, eps)
        losses["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(trainable_parameters(model), args["grad_clip"])
        optimizer.step()
        ema_update(average.parameters(), model.parameters(), ema_decay(index, args["ema_decay"], warmup=False))
        found = [losses[name].item() for name in ("loss", "loss_noise", "loss_image")]
        recorded = entry["train_step_returns_total_noise_img"][index]
        measures.append(close(f"step {index + 1} losses", found, recorded, 0.0, tolerance["loss_rtol"]))
        measures.append(
            relative(f"step {index + 1} gradient norm", float(norm), entry["clip_returned_norms"][index], 3e-5)
        )
        for name, parameter in model.named_parameters():
            norms[name].append(float(parameter.detach().double().norm()))
            key = f"delta{index + 1}/{name}"
            if key in stored:
                moved = parameter.detach().double() - initial[name]
                measures.append(close(f"moved by {key}", moved, stored[key], tolerance["delta_atol"]))
    for name, parameter in average.named_parameters():
        norms[name].append(float(parameter.detach().double().norm()))
        key = f"ema_delta3/{name}"
        if key in stored:
            # Three updates move the EMA by about 6e-4·lr, less than float32 resolves for weights near 1: each weight is held
            # to the roundings of three updates of its own size, so small weights are compared sharply.
            allowed = 6e-7 * initial[name].abs() + 2e-9
            moved = parameter.detach().double() - initial[name]
            measures.append(close(f"{key} in roundings", moved / allowed, tensor(stored[key]) / allowed, 1.0))
    for name, recorded in entry["param_norms_after_each_step_then_ema"].items():
        measures.append(close(f"norms of {name}", norms[name], recorded, 1e-6, 1e-5))
    return measures
