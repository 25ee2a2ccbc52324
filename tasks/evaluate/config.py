"""Configuration of stage evaluate."""

from typing import ClassVar

from pydantic import Field, model_validator

from tasks.model.compute import ComputeConfig


class EvaluateConfig(ComputeConfig):
    """How samples are measured and what the report shows."""

    RUNTIME: ClassVar[frozenset[str]] = ComputeConfig.RUNTIME | {"batch_size", "feature_weights"}

    feature_weights: str | None = Field(
        None, description="file with MedicalNet ResNet-50 weights; default: seeded random weights"
    )
    feature_weights_sha256: str | None = Field(
        None, pattern="^(sha256:)?[0-9a-fA-F]{64}$", description="SHA-256 that file must have"
    )
    feature_seed: int = Field(0, ge=0, description="seed of the random feature weights")
    batch_size: int = Field(4, ge=1, description="volumes whose features are computed together")
    num_bootstrap: int = Field(200, ge=0, description="bootstrap draws behind each interval; 0: no intervals")
    bootstrap_seed: int = Field(0, ge=0)
    num_shown: int = Field(4, ge=1, le=32, description="volumes shown in the report, of each side")

    @model_validator(mode="after")
    def _weights_with_digest(self) -> "EvaluateConfig":
        if (self.feature_weights is None) != (self.feature_weights_sha256 is None):
            raise ValueError(
                "evaluate.feature_weights and evaluate.feature_weights_sha256 belong together: give the file and the "
                "SHA-256 it must have (sha256sum <file>), or neither for seeded random features."
            )
        return self
