"""Plans against the published counts, plain arithmetic, and the same work on real tensors."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from prdit_models import plan as planning
from prdit_models.diffusion.cosine import CosineProcess
from prdit_models.diffusion.flow import FlowProcess
from prdit_models.diffusion.sampling import Sampler, sample
from prdit_models.families.family import Training
from prdit_models.families.local import LocalSettings
from prdit_models.intensity import HounsfieldWindow
from prdit_models.inverse.guides import GUIDES
from prdit_models.inverse.model_range import InModelRange
from prdit_models.networks.build import build_network
from prdit_models.networks.config import CascadeConfig, ModelConfig, NetworkConfig, model_config
from prdit_models.networks.prdit import PRDiT, trainable_parameters
from prdit_models.plan import (
    Memory,
    Work,
    count_flops,
    count_parameters,
    largest_batch,
    memory_of,
    of_network,
    plan,
)
from prdit_models.tracing import MemoryTrace
from tests.oracles import operators

TINY = ModelConfig(32, 8, 8, 0, 96, 4, 2)
TINY_LOCAL = ModelConfig(32, 8, 8, 0, 96, 4, 0)
BATCH = 2
TRAIN, SAMPLE = Work("global", "train"), Work("global", "sample")


@pytest.mark.parametrize(
    ("preset", "everything", "trainable"),
    [
        ("B/12/0", 39_156_160, 39_156_160),
        ("B/12/4", 93_228_992, 54_072_832),
        ("XL/12/0", 39_918_400, 39_918_400),
        ("XL/12/4", 155_974_208, 116_055_808),
    ],
)
def test_parameters_are_those_of_the_specification(preset: str, everything: int, trainable: int) -> None:
    counted = count_parameters(of_network(model_config(preset, 64)))
    assert counted == {"all": everything, "trainable": trainable}


def _local_macs(config: ModelConfig, batch: int) -> int:
    """Multiply-adds of the local branch: the token layers, then what depends on time."""
    width, rows = config.token_width, batch * config.num_tokens
    return rows * (6 * width**2 + width * config.output_width) + batch * (config.hidden_size * width + 6 * width**2)


def _recomputed_macs(config: ModelConfig, batch: int) -> int:
    """Of the embedder and the blocks, without their modulations."""
    hidden, width, tokens = config.hidden_size, config.token_width, config.num_tokens
    embedder = width * 4 * hidden + 4 * hidden * hidden + width * hidden
    block = 3 * hidden**2 + hidden**2 + 8 * hidden**2 + 2 * tokens * hidden
    return batch * tokens * (embedder + config.depth * block)


def _forward_macs(config: ModelConfig, batch: int) -> int:
    hidden = config.hidden_size
    time = 256 * hidden + hidden**2 + config.depth * 6 * hidden**2 + 2 * hidden**2
    read_out = config.num_tokens * hidden * config.output_width
    return _local_macs(config, batch) + _recomputed_macs(config, batch) + batch * (time + read_out)


def test_flops_are_two_for_every_multiply_add() -> None:
    time_layer = BATCH * 256 * TINY.hidden_size
    forward = count_flops(of_network(TINY), BATCH, training=False)
    assert forward == 2 * _forward_macs(TINY, BATCH)
    assert count_flops(of_network(TINY_LOCAL), BATCH, training=False) == 2 * (
        _local_macs(TINY_LOCAL, BATCH) + time_layer
    )

    local_step = count_flops(of_network(TINY_LOCAL), BATCH, training=True)
    # two products backward for every one forward, but no gradient for the time table
    assert local_step == 2 * (3 * _local_macs(TINY_LOCAL, BATCH) + 2 * time_layer)


def test_flops_of_checkpointing_are_one_more_forward_of_embedder_and_blocks() -> None:
    kept = count_flops(of_network(TINY), BATCH, training=True)
    recomputed = count_flops(of_network(TINY), BATCH, training=True, checkpointing=True)
    assert recomputed - kept == 2 * _recomputed_macs(TINY, BATCH)


def test_flops_are_those_of_real_tensors() -> None:
    model = PRDiT(TINY, attention="plain").double()  # operations the counter knows: no library's own
    counter = FlopCounterMode(display=False)
    with counter:
        model(torch.zeros(BATCH, 1, 32, 32, 32, dtype=torch.float64), torch.tensor([3, 500])).square().mean().backward()
    assert count_flops(of_network(TINY), BATCH, training=True) == counter.get_total_flops()


def _real_training_peak(config: ModelConfig, precision: str, checkpointing: bool) -> int:
    """Bytes alive at the peak of two real steps, in the order of the training loop."""
    model = build_network(config, attention="sdpa", checkpointing=checkpointing)
    parameters, process = trainable_parameters(model), CosineProcess()
    generator = torch.Generator().manual_seed(0)
    memory = MemoryTrace()
    memory.hold([*model.parameters(), *model.buffers()])
    with memory:
        average = [parameter.detach().clone() for parameter in parameters]
        optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0, fused=True)
        for _ in range(2):
            x0, eps = (torch.randn(BATCH, 1, 32, 32, 32, generator=generator) for _ in range(2))
            t = process.draw_times(BATCH, generator)
            x_t = process.q_sample(x0, t, eps)
            with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext():
                output = model(x_t, t)
            loss = process.losses(output.float(), x0, eps)["loss"]
            optimizer.zero_grad(set_to_none=True)
            del output
            loss.backward()
            optimizer.step()
    assert len(average) == len(parameters)
    return memory.peak_bytes


@pytest.mark.parametrize(
    ("config", "precision", "checkpointing"),
    [(TINY, "fp32", True), (TINY, "bf16", False), (TINY, "bf16", True), (TINY_LOCAL, "fp32", False)],
)
def test_training_memory_is_that_of_real_tensors(config: ModelConfig, precision: str, checkpointing: bool) -> None:
    planned = memory_of(Work("global", "train", precision, checkpointing), of_network(config), BATCH)
    measured = _real_training_peak(config, precision, checkpointing)
    assert planned.total - planned.allocator == pytest.approx(measured, rel=0.03)


def test_training_memory_has_four_copies_of_what_is_trained() -> None:
    planned = memory_of(TRAIN, of_network(model_config("B/12/4", 64)), 1)
    assert planned.weights == 4 * 93_228_992
    assert planned.gradients == planned.ema == 4 * 54_072_832
    assert planned.moments == 8 * 54_072_832


def test_checkpointing_keeps_less() -> None:
    config = model_config("XS/12/4", 64)
    kept, recomputed = (
        memory_of(replace(TRAIN, checkpointing=again), of_network(config), 2, "cuda") for again in (False, True)
    )
    hidden, rows = 192, 2 * 512
    # four blocks keep at least q, k, v, the two wide activations of the feed-forward and some of width H each
    assert kept.activations - recomputed.activations > 3 * 4 * rows * hidden * (3 + 4 + 4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "config",
    [TINY, CascadeConfig(ModelConfig(32, 10, 8, 1, 48, 4, 0), ModelConfig(16, 8, 8, 0, 96, 4, 2))],
    ids=["global", "refiner"],
)
def test_sampling_memory_is_that_of_real_tensors(config: NetworkConfig, precision: str) -> None:
    network = build_network(config, attention="sdpa").eval().requires_grad_(False)
    memory = MemoryTrace()
    memory.hold([*network.parameters(), *network.buffers()])

    class Denoiser:
        prepared = staticmethod(network.prepared)

        def __call__(self, x: Tensor, t: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                out: Tensor = network(x, t)
            return out

    with memory:
        generators = [torch.Generator().manual_seed(seed) for seed in range(BATCH)]
        sample(Denoiser(), CosineProcess(), Sampler(), volume_size=config.volume_size, generators=generators)
    planned = memory_of(replace(SAMPLE, precision=precision), of_network(config), BATCH)
    assert planned == replace(
        Memory(4 * count_parameters(of_network(config))["all"]), **_transient(planned)
    )  # no graph, no moments
    measured = memory.peak_bytes - planned.weights
    assert planned.activations == pytest.approx(measured, rel=0.03)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["pigdm", "dps"])
def test_memory_of_guides_that_differentiate_is_that_of_real_tensors(name: str, precision: str) -> None:
    """What an evaluation keeps for its derivative: several times what sampling takes."""
    network = build_network(TINY, attention="sdpa").eval().requires_grad_(False)
    operator = operators.block_means(20.0)
    truth = torch.randn(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(9)).clamp(-1, 1)
    window = HounsfieldWindow()
    guide = GUIDES[name](InModelRange(operator, window, operator.forward(window.to_hu(truth))), strength=0.1)

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            out: Tensor = network(x, t)
        return out

    memory = MemoryTrace()
    memory.hold([*network.parameters(), *network.buffers()])
    with memory:
        generators = [torch.Generator().manual_seed(seed) for seed in range(BATCH)]
        sample(denoiser, CosineProcess(), Sampler("euler", 3), volume_size=32, generators=generators, guide=guide)
    work = Work("global", "reconstruct", precision)
    planned = memory_of(work, of_network(TINY), BATCH)
    assert planned.activations == pytest.approx(memory.peak_bytes - planned.weights, rel=0.05)
    assert (
        planned.activations > 1.5 * memory_of(replace(SAMPLE, precision=precision), of_network(TINY), BATCH).activations
    )


def _transient(memory: Memory) -> dict[str, int]:
    return {"activations": memory.activations, "allocator": memory.allocator}


def test_memory_of_any_batch_is_that_of_its_own_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    for work in (TRAIN, replace(TRAIN, precision="bf16", checkpointing=True), SAMPLE):
        planned = [memory_of(work, of_network(TINY), batch).total for batch in (4, 17)]
        planning._traced.cache_clear()
        monkeypatch.setattr(planning, "_TRACED_BATCHES", (4, 17))
        assert [memory_of(work, of_network(TINY), batch).total for batch in (4, 17)] == planned
        monkeypatch.undo()
        planning._traced.cache_clear()


def test_norms_stay_in_float32_under_cudas_autocast() -> None:
    """What a gated MLP keeps on a GPU beyond the CPU: its norm's input and output in four bytes instead of two."""
    work, width, rows = replace(TRAIN, precision="bf16"), TINY_LOCAL.token_width, BATCH * TINY_LOCAL.num_tokens
    on_cpu, on_gpu = (memory_of(work, of_network(TINY_LOCAL), BATCH, device).activations for device in ("cpu", "cuda"))
    assert on_gpu - on_cpu > 2 * rows * width * 2
    plain = replace(TRAIN, precision="fp32")
    assert (
        memory_of(plain, of_network(TINY), 1, "cuda").activations == memory_of(plain, of_network(TINY), 1).activations
    )


def test_largest_batch_fits_and_the_next_does_not() -> None:
    config, work = model_config("XS/12/4", 64), replace(TRAIN, precision="bf16")
    limit = 8 * 2**30
    largest = largest_batch(work, of_network(config), limit, "cuda")
    assert memory_of(work, of_network(config), largest, "cuda").total <= limit
    assert memory_of(work, of_network(config), largest + 1, "cuda").total > limit
    assert largest_batch(TRAIN, of_network(model_config("XL/12/12", 256)), limit, "cuda") == 0


def test_plan_names_every_training_and_labels_gpu_rows_as_estimates() -> None:
    trainings = {name: of_network(model_config(f"XS/12/{depth}", 128)) for name, depth in (("one", 0), ("two", 1))}
    found = plan(trainings, {"one": 1, "two": 2})
    assert list(found["parameters"]) == ["one", "two"]
    assert found["flops"]["two"]["training_step_checkpointing"] > found["flops"]["two"]["training_step"]
    assert {(row["name"], row["what"]) for row in found["cpu"]} == {
        ("one", "train"),
        ("two", "train"),
        ("two", "sample"),
        ("two", "reconstruct"),
    }
    assert found["flops"]["two"]["forward"] == count_flops(trainings["two"], 2, training=False)
    for row in found["gpu"]:
        assert row["estimate"]
        assert list(row["largest_batch"]) == [8, 16, 24, 40, 80]
        assert sorted(row["largest_batch"].values()) == list(row["largest_batch"].values())
    parts = ("weights", "gradients", "moments", "ema", "activations", "allocator")
    assert all(row["total"] == sum(row[part] for part in parts) for row in found["cpu"])
    with pytest.raises(ValueError, match="batch is 0; expected at least 1"):
        plan(trainings, {"one": 0, "two": 1})


def test_a_refiner_trains_its_head_alone_or_all_of_it() -> None:
    config = CascadeConfig(model_config("XS/12/0", 64), model_config("XS/12/1", 32))
    cascade, head, base = (of_network(part) for part in (config, config.head, config.base))
    sizes = [count_parameters(part)["all"] for part in (head, base)]
    assert count_parameters(cascade) == {"all": sum(sizes), "trainable": sizes[0]}
    forward = sum(count_flops(part, 1, training=False) for part in (head, base))
    assert count_flops(cascade, 1, training=False) == forward
    training = memory_of(TRAIN, cascade, 1)
    assert (training.weights, training.gradients) == (4 * sum(sizes), 4 * sizes[0])
    settings = replace(cascade.training.settings, fine_tune_lr=1e-5)
    tuned = replace(cascade, training=replace(cascade.training, settings=settings))
    assert count_parameters(tuned) == {"all": sum(sizes), "trainable": sum(sizes)}


def test_flow_matching_needs_less_than_two_estimates() -> None:
    """One output channel instead of two; everything else of the step is the same."""
    two, one = model_config("XS/12/0", 64), model_config("XS/12/0", 64, out_channels=1)
    flow = replace(of_network(one), training=Training(LocalSettings(), FlowProcess()))
    saved = 2 * BATCH * two.num_tokens * two.token_width * (two.output_width - one.output_width)
    forward = [count_flops(planned, BATCH, training=False) for planned in (of_network(two), flow)]
    assert forward[0] - forward[1] == saved


def test_unknown_precision_and_device_are_refused() -> None:
    with pytest.raises(ValueError, match="precision is 'fp8'"):
        Work("global", "train", "fp8")
    with pytest.raises(ValueError, match="device is 'tpu'"):
        memory_of(SAMPLE, of_network(TINY), 1, "tpu")
