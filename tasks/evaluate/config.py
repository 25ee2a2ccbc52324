"""Configuration of stage evaluate."""

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, PlainSerializer, field_validator

from prdit_models.metrics.extractors.auto import Auto, resolved
from prdit_models.metrics.extractors.extractor import EXTRACTORS, key_of
from prdit_models.metrics.metric import METRICS
from storage.errors import as_input_error
from tasks.model.compute import ComputeConfig
from tasks.run.config import Seed
from tasks.run.settings import SettingsError, named_settings, named_values, settings_of

ExtractorSetting = Annotated[
    Any, BeforeValidator(partial(named_settings, EXTRACTORS, Auto.name)), PlainSerializer(named_values)
]


class EvaluateConfig(ComputeConfig):
    """How samples are measured and what the report shows."""

    RUNTIME: ClassVar[frozenset[str]] = ComputeConfig.RUNTIME | {"batch_size"}

    extractor: ExtractorSetting = Field(
        default_factory=Auto,
        description="network whose features the distances are measured in: name (auto, astra, medicalnet, file, random) and its "
        "settings; auto: astra where its weights are installed, else random",
    )
    batch_size: int = Field(4, ge=1, description="volumes whose features are computed together on a GPU, and per task")
    num_subsamples: int = Field(
        200,
        ge=0,
        description="subsamples behind each interval of a distance in features; 0: no intervals of any figure",
    )
    seed: Seed = Field(0, description="of the subsamples, the random pairs and the critics")
    num_shown: int = Field(4, ge=1, le=32, description="volumes shown in the report, of each side")
    metrics: dict[str, dict[str, Any] | None] = Field(
        default_factory=dict,
        description="settings of metrics by name; a metric that is not named has its defaults, one that is null is left out",
    )
    num_references: int = Field(
        16,
        ge=0,
        description="real volumes of a half that the order test compares: real with real, blurred and noised; below 2: no test",
    )

    @field_validator("num_subsamples")
    @classmethod
    def _enough(cls, given: int) -> int:
        if given == 1:
            raise ValueError(
                "evaluate.num_subsamples is 1; an interval needs at least 2 subsamples, or 0 for no intervals."
            )
        return given

    @field_validator("metrics")
    @classmethod
    def _known_metrics(cls, given: dict[str, dict[str, Any] | None]) -> dict[str, dict[str, Any] | None]:
        if unknown := sorted(given.keys() - METRICS.names()):
            raise ValueError(f"evaluate.metrics names {', '.join(unknown)}; there are {', '.join(METRICS.names())}.")
        for name, values in given.items():
            try:
                if values is not None:
                    settings_of(METRICS[name].settings, values, f"evaluate.metrics.{name}")
            except SettingsError as error:
                raise ValueError(str(error)) from error
        return given

    def metric_settings(self) -> dict[str, Any]:
        """Settings of the metrics that are measured, by name.

        Raises: InputError: one of another package cannot be imported.
        """
        with as_input_error():
            return {
                name: settings_of(METRICS[name].settings, self.metrics.get(name) or {}, f"evaluate.metrics.{name}")
                for name in METRICS.names()
                if self.metrics.get(name, {}) is not None
            }

    def key_fields(self) -> dict[str, Any]:
        """As every stage's, with the settings of every metric; of the extractor what decides features."""
        settings = {name: asdict(each) for name, each in self.metric_settings().items()}
        return super().key_fields() | {"extractor": key_of(self.extractor), "metrics": settings}

    def for_this_installation(self) -> "EvaluateConfig":
        """With the extractor that `auto` stands for here, and the path of a file as workers find it."""
        extractor: Any = resolved(self.extractor)
        if getattr(extractor, "path", None):
            extractor = replace(extractor, path=str(Path(extractor.path).resolve()))
        return self.model_copy(update={"extractor": extractor})
