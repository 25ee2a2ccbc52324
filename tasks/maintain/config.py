"""What an installation keeps, and how much of its disk stays free."""

from pydantic import BaseModel, ConfigDict, Field

_DAY_S = 86400


class RetentionConfig(BaseModel):
    """What maintenance keeps. The champion, every version with an alias and all that these were made from stay in any case."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, title="retention")

    keep_runs: int = Field(10, ge=0, description="stages of this many newest runs are kept")
    keep_days: float = Field(30.0, ge=0, description="stages that were used in this many days are kept")
    keep_champions: int = Field(
        3,
        ge=1,
        description="checkpoints of this many newest champions are kept, so that a promotion can be rolled back",
    )
    challenger_days: float = Field(
        30.0,
        ge=0,
        description="checkpoints and samples of challengers that were held are removed when they were not used for this many "
        "days, though a run that is kept made them",
    )
    log_days: float = Field(
        90.0,
        ge=0,
        description="records of runs (beyond the newest) and reports of faults are removed after this many days",
    )
    server_days: float = Field(
        90.0,
        ge=1,
        description="flow runs of the Prefect server, and ended runs of the MLflow server that no kept model version comes "
        "from, are removed after this many days",
    )
    trash_days: float = Field(
        7.0, ge=0, description="what is in MLflow's trash is removed for good after this many days, whoever deleted it"
    )
    event_days: float = Field(7.0, ge=1, description="events of the Prefect server are removed after this many days")
    min_free_gb: float = Field(
        5.0,
        ge=0,
        description="with less free disk, maintenance removes what it may at once, and no flow starts work that writes",
    )

    def prefect_environment(self) -> dict[str, str]:
        """Settings by which a Prefect server of 3.8 removes old flow runs, their logs and events by itself."""
        return {
            "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
            "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": f"{self.server_days * _DAY_S:.0f}",
            "PREFECT_SERVER_EVENTS_RETENTION_PERIOD": f"PT{self.event_days * _DAY_S:.0f}S",
        }
