"""What one row, sampler and seed came to, from the artifacts that it left."""

from collections.abc import Mapping

from storage.artifacts import Ref, load_provenance
from storage.documents.benchmark import PlannedTraining, SeedResult
from storage.documents.provenance import Cost
from storage.documents.report import Report
from storage.documents.samples import Samples
from tasks.benchmark.columns import quality_of


def seed_result(
    seed: int, planned: tuple[PlannedTraining, ...], checkpoints: Mapping[str, Ref], samples: Ref, report: Ref
) -> SeedResult:
    """Figures and costs of one seed.

    Args:
        seed: which.
        planned: the row's trainings.
        checkpoints: what they made, by name.
        samples, report: of its sampler.
    """
    measured, drawn = Report.load(report.path), Samples.load(samples.path)
    costs = {name: cost for name, ref in checkpoints.items() if (cost := load_provenance(ref).cost) is not None}
    figures = quality_of(measured) | _costs(planned, costs, drawn, load_provenance(samples).seconds)
    return SeedResult(
        seed=seed,
        figures=figures,
        steps={name: cost.steps for name, cost in costs.items()},
        report=report,
        samples=samples,
        n_generated=len(drawn.volume_ids),
    )


def _costs(
    planned: tuple[PlannedTraining, ...], costs: Mapping[str, Cost], drawn: Samples, seconds: float | None
) -> dict[str, float | None]:
    """Costs by column; all trainings of the row count, those that it shares with other rows too."""
    known = len(costs) == len(planned)
    return {
        "parameters": float(planned[-1].parameters),
        "flops_per_volume": flops_per_volume(planned, costs),
        "peak_memory": float(max(cost.peak_memory_bytes for cost in costs.values())) if known else None,
        "training_seconds": sum(cost.seconds for cost in costs.values()) if known else None,
        "training_steps": float(sum(cost.steps for cost in costs.values())) if known else None,
        "volumes_seen": float(sum(cost.volumes for cost in costs.values())) if known else None,
        "evaluations": float(drawn.sampler.evaluations),
        "sampling_seconds": None if seconds is None else seconds / drawn.num_asked,
    }


def flops_per_volume(planned: tuple[PlannedTraining, ...], costs: Mapping[str, Cost]) -> float | None:
    """Floating-point operations per volume seen in training, the mean over all volumes of all trainings of the row."""
    seen = {each.name: costs[each.name].volumes for each in planned if each.name in costs}
    if len(seen) < len(planned) or not sum(seen.values()) or any(each.flops_per_volume is None for each in planned):
        return None
    return sum((each.flops_per_volume or 0) * seen[each.name] for each in planned) / sum(seen.values())
