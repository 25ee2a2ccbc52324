"""The interface of a metric, and the table of metrics."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prdit_models.intensity import HounsfieldWindow
from prdit_models.registry import Registry

Hu = NDArray[np.float32]
LEVEL = 0.95  # of every interval


Better = Literal["", "lower", "higher"]


@dataclass(frozen=True)
class About:
    """What is known of a figure before it is measured.

    Attributes:
        title: for tables.
        better: `lower` or `higher` for a figure that says how near generated volumes are to real ones; it must then order real
            volumes before blurred ones, and those before noised ones, else the report marks it as blind. Empty: it describes.
        source: paper or definition.
        caveat: what it does not see; one sentence.
    """

    title: str
    better: Better = ""
    source: str = ""
    caveat: str = ""


@dataclass(frozen=True)
class Figure:
    """One number of an evaluation.

    Attributes:
        value: the number, or None where it is not defined (the note says why).
        n_real, n_generated: volumes behind it.
        unit: empty for pure numbers.
        features: digest of the feature network, or None.
        interval: `{low, high, level, method, …}` or None.
        note: one sentence to read with it, or empty.
    """

    value: float | None
    n_real: int
    n_generated: int
    unit: str = ""
    features: str | None = None
    interval: dict[str, Any] | None = None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def _unreadable(name: str) -> Hu:
    raise ValueError(f"volume {name} of this side cannot be read")


@dataclass(frozen=True)
class Side:
    """What is known of the real or of the generated volumes.

    Attributes:
        ids: of the volumes.
        features: of the feature network, shape (n, d), in the order of the ids.
        seen: what a metric kept of each volume (`Metric.of_volume`), in the same order, by the metric's name.
        roles: of real volumes `train` or `val`, in the same order; empty for generated ones.
        read: a volume by its id, HU (S, S, S), saturated to the window; for metrics that need more of a few volumes than they
            could keep of all.
    """

    ids: tuple[str, ...]
    features: NDArray[np.float32]
    seen: Mapping[str, list[Any]]
    roles: tuple[str, ...] = ()
    read: Callable[[str], Hu] = field(default=_unreadable, compare=False)

    def of_role(self, role: str) -> list[int]:
        """Indices of the volumes that have a role."""
        return [place for place, found in enumerate(self.roles) if found == role]

    def part(self, places: Sequence[int]) -> Self:
        """The side of some of its volumes, by their indices."""
        return replace(
            self,
            ids=tuple(self.ids[k] for k in places),
            features=self.features[list(places)],
            seen={name: [kept[k] for k in places] for name, kept in self.seen.items()},
            roles=tuple(self.roles[k] for k in places) if self.roles else (),
        )


@dataclass(frozen=True)
class Setting:
    """What holds for both sides.

    Attributes:
        window: Hounsfield window of the sampled model; volumes are saturated to it.
        voxel_mm: voxel distance of the volumes.
        size: their edge in voxels.
        trained_on_split: whether the sampled model was trained on the volumes of role `train`.
        features: digest of the feature network.
        random_features: whether its weights are random.
        num_subsamples: subsamples behind an interval; 0: no intervals.
        seed: of the subsamples, and of what else a metric draws (pairs, halves, critics).
        settings: of the metrics that are measured, by name.
        reference: whether real volumes are compared with real or degraded ones, for the order test: what is slow may be done with
            less effort.
        device: where a metric that trains or evaluates a network does it.
    """

    window: HounsfieldWindow
    voxel_mm: float
    size: int
    trained_on_split: bool = False
    features: str = ""
    random_features: bool = True
    num_subsamples: int = 0
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    reference: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class Comparison:
    """The result of a metric on two sides.

    Attributes:
        figures: by name; names are unique among all metrics.
        warnings: sentences for the top of the report.
        details: JSON values for `metrics.json`, under the metric's name.
    """

    figures: dict[str, Figure]
    warnings: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)


def rounded(values: ArrayLike) -> list[float]:
    """Numbers as `Comparison.details` has them: five digits."""
    return [float(f"{value:.5g}") for value in np.asarray(values, dtype=np.float64)]


@dataclass(frozen=True)
class NoSettings:
    """Of a metric that has none."""


class Metric(Protocol):
    """One way to compare generated volumes with real ones.

    Attributes:
        figures: its figures by name.
        settings: frozen dataclass of its settings, `evaluate.metrics.<name>` of a configuration.
    """

    figures: Mapping[str, About]
    settings: type[Any]

    def of_volume(self, hu: Hu, setting: Setting) -> Any:
        """What is kept of one volume (S, S, S) in HU, saturated to the window; small, as all are kept. None: nothing."""

    def compare(self, real: Side, generated: Side, setting: Setting) -> Comparison:
        """Figures of both sides, each of two volumes or more."""


METRICS: Registry[Metric] = Registry(
    "metric",
    "prdit.metrics",
    {
        "anatomy": "prdit_models.metrics.chest:ANATOMY",
        "fid": "prdit_models.metrics.fid:METRIC",
        "hu": "prdit_models.metrics.histogram:METRIC",
        "kid": "prdit_models.metrics.kid:METRIC",
        "memorisation": "prdit_models.metrics.memorisation:METRIC",
        "mmd": "prdit_models.metrics.mmd:METRIC",
        "ms_ssim": "prdit_models.metrics.ms_ssim:METRIC",
        "prdc": "prdit_models.metrics.prdc:METRIC",
        "spectrum": "prdit_models.metrics.spectrum:METRIC",
        "wasserstein": "prdit_models.metrics.wasserstein:METRIC",
    },
    needs=("figures", "settings", "of_volume", "compare"),
)
