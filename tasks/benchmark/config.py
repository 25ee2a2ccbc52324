"""Settings of a benchmark: the protocol that all rows share, and the rows."""

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from tasks.benchmark.paper import PAPER
from tasks.run.config import Seed, StageConfig

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]  # of a row, of a sampler: in names of metrics, too
Title = Annotated[str, Field(pattern=r"^\S(.*\S)?$")]  # one line


class Budget(StageConfig):
    """How long each row is trained, all its trainings together: optimiser steps, or seconds of them on the device at hand."""

    steps: int | None = Field(None, gt=0, description="optimiser steps of all trainings of a row together")
    seconds: float | None = Field(
        None, gt=0, description="seconds of optimiser steps, without validation, of all trainings of a row together"
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> "Budget":
        if (self.steps is None) == (self.seconds is None):
            raise ValueError(
                "budget is "
                + ("both steps and seconds" if self.steps else "neither steps nor seconds")
                + "; give one of them."
            )
        return self

    def __str__(self) -> str:
        if self.steps is not None:
            return f"{self.steps:,} optimiser steps"
        return f"{self.seconds:,g} s of optimiser steps, without validation"

    def of_training(self, share: float) -> dict[str, Any]:
        """Settings of a training that has this share of the budget."""
        if self.steps is not None:
            return {"steps": max(1, round(share * self.steps)), "seconds": None}
        return {"steps": _NO_END, "seconds": share * float(self.seconds or 0.0)}


_NO_END = 10**9  # optimiser steps of a training that its seconds end


class RowConfig(StageConfig):
    """One row: how it is trained and sampled."""

    title: Title = Field(..., description="what the table calls it")
    configuration: str = Field(
        ...,
        min_length=1,
        description="configuration whose recipe it is: a name, of another package too, or a YAML file",
    )
    overrides: dict[str, Any] = Field(
        default_factory=dict, description="settings on top of that configuration; what the protocol sets cannot be set"
    )
    shares: dict[str, float] = Field(
        default_factory=dict,
        description="parts of the budget by training, relative to each other; default: all the same",
    )
    samplers: dict[Name, dict[str, Any]] = Field(
        {"published": {}},
        min_length=1,
        description="how it is sampled, one line of the table each: settings of `sample` by a name such as published or few",
    )
    deviations: tuple[str, ...] = Field(
        (), description="what it has otherwise than published, besides what its family says"
    )
    paper: str = Field("", description="row of the PRDiT paper's tables that it is beside; empty: none")

    @field_validator("shares")
    @classmethod
    def _positive(cls, given: dict[str, float]) -> dict[str, float]:
        if wrong := [name for name, share in given.items() if not share > 0]:
            raise ValueError(f"shares of {', '.join(wrong)} are not above 0")
        return given

    @field_validator("paper")
    @classmethod
    def _of_the_paper(cls, given: str) -> str:
        names = list(dict.fromkeys(row.model for row in PAPER))
        if given and given not in names:
            raise ValueError(f"the paper's tables have no {given!r}; their rows are {'; '.join(names)}")
        return given


class ProtocolConfig(StageConfig):
    """What is the same for every row, and the rows."""

    title: Title = "Benchmark"
    phantoms: int = Field(0, ge=0, description="synthetic patients that are written and ingested first; 0: none")
    seeds: tuple[Seed, ...] = Field((1, 2, 3), min_length=1, description="of trainings and samples")
    num_volumes: int = Field(..., ge=2, description="volumes that are sampled of each row, sampler and seed")
    budget: Budget
    rows: dict[Name, RowConfig] = Field(..., min_length=1)

    @field_validator("seeds")
    @classmethod
    def _different(cls, given: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(given)) < len(given):
            raise ValueError(f"seeds {list(given)} are not all different: the same seed is the same result")
        return given

    @field_validator("rows")
    @classmethod
    def _told_apart(cls, given: dict[str, RowConfig]) -> dict[str, RowConfig]:
        names: dict[str, list[str]] = {}
        for name, row in given.items():
            names.setdefault(row.title, []).append(name)
        if doubled := [f"{' and '.join(rows)} are both {title!r}" for title, rows in names.items() if len(rows) > 1]:
            raise ValueError(f"titles tell rows apart, and {'; '.join(doubled)}")
        return given
