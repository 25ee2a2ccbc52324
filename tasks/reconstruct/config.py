"""Configuration of stage reconstruct."""

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from tasks.sample.config import RedrawConfig, SampleConfig


class ReconstructConfig(SampleConfig):
    """How volumes are drawn towards a measurement, and what is said of them; the sampler's settings are those of stage sample."""

    RUNTIME: ClassVar[frozenset[str]] = SampleConfig.RUNTIME | {"trained_patients"}  # refuses, and changes nothing

    output: Literal["image", "state"] = Field(
        "state",
        description="what becomes the volume: state, where the sampler ends, which has the measurement in it; image, the model's "
        "own image estimate at the last evaluation, which is smoother and forgets a part of the measurement",
    )
    guide: str = Field("projection", description="how volumes are pulled towards the measurement (docs/guided.md)")
    strength: float | None = Field(
        None,
        ge=0,
        description="of the guide; 0: the volumes are those that stage sample draws, whatever was measured; default: the guide's",
    )
    guide_settings: dict[str, Any] = Field(default_factory=dict, description="further settings of the guide")
    trained_patients: bool = Field(
        False,
        description="whether a simulated measurement may be of a patient that the model was trained on; the result is marked",
    )
    level: float = Field(0.9, gt=0, lt=1, description="nominal coverage of the interval of every voxel")

    @field_validator("redraw")
    @classmethod
    def _every_volume_counts(cls, value: RedrawConfig) -> RedrawConfig:
        """A volume that is drawn again because of what it shows would bend the distribution that the samples stand for."""
        if value.most:
            raise ValueError(
                f"redraw.most is {value.most}; samples of a measurement are not drawn again: their mean and spread would be "
                "those of a selection. Leave it out."
            )
        return value
