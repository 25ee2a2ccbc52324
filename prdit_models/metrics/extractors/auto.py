"""The extractor that is used where none is chosen."""

from dataclasses import dataclass
from typing import ClassVar

from prdit_models.metrics.extractors import astra
from prdit_models.metrics.extractors.extractor import Extractor, ExtractorSettings
from prdit_models.metrics.extractors.random import RandomFeatures


@dataclass(frozen=True)
class Auto:
    """The features of a network trained on chest CT where its weights are installed, else random ones."""

    name: ClassVar[str] = "auto"

    def choice(self) -> ExtractorSettings:
        """What it stands for in this installation."""
        return RandomFeatures() if astra.missing_parts() else astra.Astra()

    def load(self) -> Extractor:
        """The extractor chosen."""
        return self.choice().load()


def resolved(settings: ExtractorSettings) -> ExtractorSettings:
    """Settings that name an extractor: `Auto` stands for another one."""
    return settings.choice() if isinstance(settings, Auto) else settings
