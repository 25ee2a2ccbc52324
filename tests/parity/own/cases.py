"""The cases of our own set: one computation by the float64 oracle (tests/oracles/prdit_literal.py) and by the product."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from prdit_models.diffusion.cosine import CosineProcess
from prdit_models.diffusion.flow import FlowProcess
from prdit_models.diffusion.sampling import Sampler, sample
from prdit_models.ema import ema_decay, ema_update
from prdit_models.networks.build import Network, build_network
from prdit_models.networks.config import CascadeConfig, ModelConfig, NetworkConfig
from prdit_models.networks.embeddings import position_table, timestep_embedding
from prdit_models.networks.prdit import PRDiT, trainable_parameters
from tests.oracles import prdit_literal as literal
from tests.parity.measure import Measure, close
from tests.parity.placement import device_in_force, placed
from tests.parity.sets import recipe_tensor, shapes_of, uniform
from tests.submodules import branches, hidden_tokens

Values = dict[str, Tensor]
TIMES = torch.tensor([37, 950])
FULL = ModelConfig(volume_size=8, patch_size=4, stride=2, padding=1, hidden_size=48, num_heads=4, depth=2)
LOCAL = ModelConfig(volume_size=8, patch_size=6, stride=4, padding=1, hidden_size=48, num_heads=4, depth=0)
LEARNING_RATE, EMA = 1e-4, 0.9999


@dataclass(frozen=True)
class Case:
    """One computation, done twice.

    Attributes:
        name: unique.
        oracle: its results in float64, by name.
        product: the same by the product, in the given dtype, on the device in force (`tests.parity.placement`).
        atol: allowed to the product in float32, in units of the largest reference value: about eight times what it measures.
        atol64: allowed to the product in float64; more than rounding only where the product forms numbers in float32, as published.
        in_float32: False where float32 has nothing to say: a first step of Adam is ±lr whatever the gradient's size.
    """

    name: str
    oracle: Callable[[], Values]
    product: Callable[[torch.dtype], Values]
    atol: float = 5e-6
    atol64: float = 1e-11
    in_float32: bool = True

    def measures(self, reference: Values) -> list[Measure]:
        """The product in both precisions against the oracle's results."""
        found = compared(self.product(torch.float64), reference, "float64", self.atol64)
        return found + (
            compared(self.product(torch.float32), reference, "float32", self.atol) if self.in_float32 else []
        )


def scale_of(reference: Tensor) -> float:
    """What tolerances are in units of; the floor is for weights that do not move and gradients that vanish."""
    return max(1e-3, float(reference.abs().max()))


def compared(found: Values, reference: Values, precision: str, atol: float) -> list[Measure]:
    assert found.keys() == reference.keys(), set(found) ^ set(reference)
    return [close(f"{key}, {precision}", found[key], value, atol * scale_of(value)) for key, value in reference.items()]


def numbers(shape: tuple[int, ...], seed: str, scale: float = 1.0) -> Tensor:
    """Float64 numbers in [-scale, scale) that float32 holds exactly (for powers of two), by a counter-based generator."""
    count = int(torch.Size(shape).numel())
    return torch.from_numpy(uniform(f"own/{seed}", 0, count)).reshape(shape) * scale


def network(config: NetworkConfig, seed: str) -> Network:
    """A float32 network whose every weight is away from its start, the same on every machine."""
    model = build_network(config)
    state = {key: recipe_tensor(key, shape, f"own/{seed}", 1.0) for key, shape in shapes_of(model).items()}
    model.load_state_dict(state)
    return model.eval()


def weights64(config: NetworkConfig, seed: str) -> Values:
    return {key: value.double() for key, value in network(config, seed).state_dict().items()}


def _volume(config: ModelConfig, seed: str, batch: int = 2) -> Tensor:
    return numbers((batch, config.in_channels, *(config.volume_size,) * 3), seed)


def forward(name: str, config: ModelConfig, *, low_variance: bool = False, times: Tensor = TIMES) -> Case:
    """Both branches and their sum; tokens of low variance are where the norms' epsilons show."""
    x = _volume(config, name)
    x = x / 1024 if low_variance else x

    def oracle() -> Values:
        coarse, fine = literal.branches(weights64(config, name), asdict(config), x, times, config.arithmetic)
        parts = {"coarse": coarse, "y": coarse if fine is None else coarse + fine}
        return parts if fine is None else parts | {"fine": fine}

    @torch.no_grad()
    def product(dtype: torch.dtype) -> Values:
        model = placed(network(config, name), dtype)
        assert isinstance(model, PRDiT)
        coarse, fine = branches(model, placed(x, dtype), times)
        parts = {"coarse": coarse, "y": model(placed(x, dtype), times)}
        return parts if fine is None else parts | {"fine": fine}

    return Case(name, oracle, product)


def encode() -> Case:
    config = replace(FULL, depth=8)
    x = _volume(config, "encode")

    @torch.no_grad()
    def product(dtype: torch.dtype) -> Values:
        model = placed(network(config, "encode"), dtype)
        assert isinstance(model, PRDiT)
        return {
            "block 5 at t = 50": hidden_tokens(model, placed(x, dtype), 50, 5),
            "block 7 at t = 3": hidden_tokens(model, placed(x, dtype), 3, 7),
        }

    def oracle() -> Values:
        state = weights64(config, "encode")
        return {
            "block 5 at t = 50": literal.encode(state, asdict(config), x),
            "block 7 at t = 3": literal.encode(state, asdict(config), x, 3, last=7),
        }

    return Case("encode", oracle, product)


def cascade() -> Case:
    config = CascadeConfig(replace(LOCAL, volume_size=16, hidden_size=24, num_heads=1), replace(FULL, depth=1))
    x = numbers((2, 1, 16, 16, 16), "cascade")

    def oracle() -> Values:
        base = config.base
        return {"y": literal.forward_sr(weights64(config, "cascade"), asdict(config.head), asdict(base), x, TIMES)}

    @torch.no_grad()
    def product(dtype: torch.dtype) -> Values:
        return {"y": placed(network(config, "cascade"), dtype)(placed(x, dtype), TIMES)}

    return Case("cascade", oracle, product)


def tables() -> Case:
    """The two float32 tables; the oracle has its own order of operations, the published one."""
    t = torch.tensor([0.0, 1.0, 37.0, 500.5, 999.0])
    frequencies = torch.exp(-torch.log(torch.tensor(10000.0)) * torch.arange(128, dtype=torch.float32) / 128)

    def oracle() -> Values:
        arguments = (t[:, None] * frequencies).double()
        time = torch.cat([torch.cos(arguments), torch.sin(arguments)], 1)
        return {"time": time, "position": literal.position_table(4, 48).double()}

    def product(dtype: torch.dtype) -> Values:
        return {"time": timestep_embedding(placed(t)).to(dtype), "position": position_table(4, 48).to(dtype)}

    return Case("tables", oracle, product, atol=1e-6, atol64=1e-6)


def noising() -> Case:
    x0, eps, steps = numbers((4, 1, 4, 4, 4), "x0"), numbers((4, 1, 4, 4, 4), "eps"), torch.tensor([0, 1, 500, 999])
    t = torch.tensor([0.0, 0.125, 0.5, 1.0])
    share = t[:, None, None, None, None].double()

    def product(dtype: torch.dtype) -> Values:
        noisy = CosineProcess().q_sample(placed(x0, dtype), steps, placed(eps, dtype))
        return {"cosine": noisy, "flow": FlowProcess().q_sample(placed(x0, dtype), t, placed(eps, dtype))}

    return Case(
        "noising",
        lambda: {"cosine": literal.q_sample(x0, steps, eps), "flow": (1 - share) * eps + share * x0},
        product,
        atol=1e-6,
        atol64=2e-7,
    )


def _training_inputs(config: ModelConfig, name: str) -> tuple[Tensor, Tensor, Tensor]:
    x0, eps = _volume(config, f"{name} x0"), _volume(config, f"{name} eps") / 2
    return x0, eps, literal.q_sample(x0, TIMES, eps).float().double()


def _trained(config: ModelConfig, name: str, weights: Values) -> Values:
    """Weights of which those that are trained ask for a gradient: in stage 2 the refiner and its time head (SPEC §4)."""
    parts = ("",) if config.depth == 0 else ("fine.", "t_embedder.fine_head.")
    return {key: value.requires_grad_(key.startswith(parts)) for key, value in weights.items()}


def gradients(name: str, config: ModelConfig) -> Case:
    x0, eps, x_t = _training_inputs(config, name)

    def oracle() -> Values:
        state = _trained(config, name, weights64(config, name))
        loss = literal.losses(literal.forward(state, asdict(config), x_t, TIMES), x0, eps)
        trained = {key: value for key, value in state.items() if value.requires_grad}
        found = torch.autograd.grad(loss, list(trained.values()))
        return {"loss": loss.detach()} | dict(zip(trained, found, strict=True))

    def product(dtype: torch.dtype) -> Values:
        model = placed(network(config, name), dtype)
        loss = CosineProcess().losses(model(placed(x_t, dtype), TIMES), placed(x0, dtype), placed(eps, dtype))["loss"]
        loss.backward()
        found = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
        return {"loss": loss.detach()} | found

    return Case(name, oracle, product)


def training_step(name: str, config: ModelConfig) -> Case:
    """Loss, clipping, AdamW and EMA: how far each weight and its average move, in learning rates."""
    x0, eps, x_t = _training_inputs(config, name)

    def oracle() -> Values:
        state = _trained(config, name, weights64(config, name))
        _, moved, ema = literal.train_step(
            state, lambda w: literal.forward(w, asdict(config), x_t, TIMES), x0, eps, LEARNING_RATE, EMA
        )
        return {key: (moved[key] - state[key].detach()) / LEARNING_RATE for key in state} | {
            f"EMA of {key}": (ema[key] - state[key].detach()) / (LEARNING_RATE * (1 - EMA)) for key in state
        }

    def product(dtype: torch.dtype) -> Values:
        model, average = placed(network(config, name), dtype), placed(network(config, name), dtype)
        before = {key: p.detach().clone() for key, p in model.named_parameters()}
        optimizer = torch.optim.AdamW(trainable_parameters(model), lr=LEARNING_RATE, weight_decay=0.0)
        CosineProcess().losses(model(placed(x_t, dtype), TIMES), placed(x0, dtype), placed(eps, dtype))[
            "loss"
        ].backward()
        torch.nn.utils.clip_grad_norm_(trainable_parameters(model), 1.0)
        optimizer.step()
        ema_update(average.parameters(), model.parameters(), ema_decay(0, EMA, warmup=False))
        moved = {key: (p.detach() - before[key]) / LEARNING_RATE for key, p in model.named_parameters()}
        return moved | {
            f"EMA of {key}": (p.detach() - before[key]) / (LEARNING_RATE * (1 - EMA))
            for key, p in average.named_parameters()
        }

    # an EMA moves by 1e-8, sixteen digits below 1 are 1e-16
    return Case(name, oracle, product, atol64=1e-7, in_float32=False)


def published_sampler(num_steps: int, corrector: bool, arithmetic: str = "prdit") -> Case:
    config = replace(FULL, depth=1, arithmetic=arithmetic)
    sampler = Sampler("predictor-corrector" if corrector else "euler", num_steps, "published")
    process = CosineProcess(noise_std=1.0 if arithmetic == "tf" else 0.5)
    name = f"{sampler.name}, {num_steps} steps" + (", tf" if arithmetic == "tf" else "")
    noise = [_volume(config, f"noise {draw}") * process.noise_std for draw in range(num_steps + 1)]

    def oracle() -> Values:
        state = weights64(config, "sampler")
        run = literal.from_config(asdict(config)) if arithmetic == "prdit" else None

        def model(x: Tensor, t: int) -> Tensor:
            return run(state, x, t) if run else literal.forward(state, asdict(config), x, t, arithmetic)

        x, x0 = literal.published_sampler(model, noise[0], num_steps, noise[1:], corrector)
        return {"x": x, "x0": x0}

    return Case(name, oracle, _drawn(config, process, sampler, noise), atol=2e-5)


def flow(solver: str, num_steps: int) -> Case:
    config = replace(FULL, depth=1, out_channels=1)
    z = _volume(config, "flow")
    evaluations = num_steps * (2 if solver == "heun" else 1)

    def oracle() -> Values:
        run, state = literal.from_config(asdict(config)), weights64(config, "sampler")
        return {"x": literal.flow_sampler(lambda x, t: run(state, x, t), z, num_steps, solver == "heun")}

    drawn = _drawn(config, FlowProcess(), Sampler(solver, evaluations), [z])
    # a time of 1000·m/n is rounded to float32 on one side before, on the other after the product
    return Case(f"flow {solver}, {num_steps} steps", oracle, lambda dtype: {"x": drawn(dtype)["x"]}, 2e-5, 2e-6)


def _drawn(
    config: ModelConfig, process: CosineProcess | FlowProcess, sampler: Sampler, noise: list[Tensor]
) -> Callable[[torch.dtype], Values]:
    def product(dtype: torch.dtype) -> Values:
        draws = iter(noise)
        result = sample(
            placed(network(config, "sampler"), dtype),
            process,
            sampler,
            volume_size=config.volume_size,
            generators=[torch.Generator()] * len(noise[0]),
            device=device_in_force(),
            noise_source=lambda _: placed(next(draws), dtype),
        )
        return {"x": result.x, "x0": result.x0}

    return product


def flow_loss() -> Case:
    config = replace(FULL, out_channels=1)
    x0, eps, t = _volume(config, "flow x0"), _volume(config, "flow eps"), torch.tensor([0.125, 0.75])

    def oracle() -> Values:
        run, state = literal.from_config(asdict(config)), weights64(config, "flow")
        return {"loss": literal.flow_loss(lambda x, time: run(state, x, time), x0, eps, t.double())}

    @torch.no_grad()
    def product(dtype: torch.dtype) -> Values:
        process, model = FlowProcess(), placed(network(config, "flow"), dtype)
        x_t = process.q_sample(placed(x0, dtype), t.to(dtype), placed(eps, dtype))
        return {"loss": process.sample_losses(model(x_t, process.model_time(t)), placed(x0, dtype), placed(eps, dtype))}

    return Case("flow loss", oracle, product)


def _cases() -> dict[str, Case]:
    small: dict[str, Any] = {"depth": 0}
    found = [
        forward("local", LOCAL),
        forward("local, low variance", LOCAL, low_variance=True),
        forward("local without overlap", replace(FULL, patch_size=4, stride=4, padding=0, **small)),
        *(forward(f"depth {depth}", replace(FULL, depth=depth)) for depth in range(1, 13)),
        forward("depth 2, low variance", FULL, low_variance=True),
        forward("depth 2, two channels", replace(FULL, in_channels=2)),
        forward("depth 1, 16³", replace(LOCAL, volume_size=16, depth=1)),
        forward("flow matching, depth 2", replace(FULL, out_channels=1), times=torch.tensor([0.0, 912.5])),
        forward("tf, depth 0", replace(LOCAL, arithmetic="tf")),
        forward("tf, depth 2", replace(FULL, arithmetic="tf")),
        encode(),
        cascade(),
        tables(),
        noising(),
        gradients("gradients, stage 1", LOCAL),
        gradients("gradients, stage 2", FULL),
        training_step("step, stage 1", LOCAL),
        training_step("step, stage 2", replace(FULL, depth=1)),
        *(published_sampler(n, corrector) for n in (1, 3, 7, 20, 50) for corrector in (False, True)),
        published_sampler(20, True, "tf"),
        *(flow(solver, n) for solver in ("euler", "heun") for n in (1, 5)),
        flow_loss(),
    ]
    return {case.name: case for case in found}


CASES = _cases()
