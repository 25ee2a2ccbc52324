"""The interface of a metric, and the table of metrics."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from prdit_models.intensity import HounsfieldWindow
from prdit_models.registry import Registry

Hu = NDArray[np.float32]
LEVEL = 0.95  # of every interval


@dataclass(frozen=True)
class Figure:
    """One number of an evaluation.

    Attributes:
        value: the number, or None where it is not defined (the note says why).
        n_real, n_generated: volumes behind it.
        unit: empty for pure numbers.
        features: digest of the feature network, or None.
        interval: `{low, high, level, num_bootstrap, method}` or None.
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


@dataclass(frozen=True)
class Side:
    """What is known of the real or of the generated volumes.

    Attributes:
        ids: of the volumes.
        features: of the feature network, shape (n, d), in the order of the ids.
        seen: what a metric kept of each volume (`Metric.of_volume`), in the same order, by the metric's name.
        roles: of real volumes `train` or `val`, in the same order; empty for generated ones.
    """

    ids: tuple[str, ...]
    features: NDArray[np.float32]
    seen: Mapping[str, list[Any]]
    roles: tuple[str, ...] = ()

    def of_role(self, role: str) -> list[int]:
        """Indices of the volumes that have a role."""
        return [place for place, found in enumerate(self.roles) if found == role]


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
        num_bootstrap: draws behind an interval; 0: no intervals.
        seed: of the draws.
    """

    window: HounsfieldWindow
    voxel_mm: float
    size: int
    trained_on_split: bool = False
    features: str = ""
    random_features: bool = True
    num_bootstrap: int = 0
    seed: int = 0


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


class Metric(Protocol):
    """One way to compare generated volumes with real ones.

    Attributes:
        titles: of its figures, by name, for the report's table.
    """

    titles: Mapping[str, str]

    def of_volume(self, hu: Hu, setting: Setting) -> Any:
        """What is kept of one volume (S, S, S) in HU, saturated to the window; small, as all are kept. None: nothing."""

    def compare(self, real: Side, generated: Side, setting: Setting) -> Comparison:
        """Figures of both sides, each of two volumes or more."""


METRICS: Registry[Metric] = Registry(
    "metric",
    "prdit.metrics",
    {
        "anatomy": "prdit_models.metrics.chest:ANATOMY",
        "copies": "prdit_models.metrics.chest:COPIES",
        "distances": "prdit_models.metrics.distances:METRIC",
        "hu": "prdit_models.metrics.histogram:METRIC",
    },
    needs=("titles", "of_volume", "compare"),
)
