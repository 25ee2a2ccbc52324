"""A feature extractor: mean HU of blocks."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from prdit_models.metrics.extractors.extractor import Extractor, Input


@dataclass(frozen=True)
class BlockMeans:
    """Settings: `evaluate.extractor` of a configuration."""

    name: ClassVar[str] = "toy-blocks"
    edge: int = 4

    def load(self) -> Extractor:
        return Extractor(
            name=self.name,
            title="toy: means of blocks",
            weights=f"none, {self.edge} blocks per axis",
            width=self.edge**3,
            statement="the features are means of blocks: distances see coarse anatomy alone.",
            network=nn.Sequential(nn.AdaptiveAvgPool3d(self.edge), nn.Flatten()),
            input=Input(hu=(-1000.0, 400.0)),
        )
