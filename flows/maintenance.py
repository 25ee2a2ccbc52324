"""The flow `maintenance`: the store is verified, and what the site's retention does not keep is removed."""

from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from flows.hooks import ATTENDED, DAY_S, attended
from flows.named_files import config_names

SiteChoice = Annotated[str, Field(json_schema_extra={"enum": ["", *config_names()]})]


@flow(name="maintenance", timeout_seconds=2 * DAY_S, **ATTENDED)
def maintenance(
    configuration: SiteChoice = "",
    store: str = "",
    overrides: dict[str, Any] = {},  # noqa: B006  # never changed; the form needs the value itself as default
) -> dict[str, Any]:
    """Check of every byte of the store, and of the free space; then what the site's retention does not keep is removed.

    Args:
        configuration: Named configuration whose folder of stages is looked after. Empty: the site's (.prdit/site.yaml).
        store: Folder of the volume store that is verified. Empty: the site's (.prdit/store).
        overrides: Settings that differ from the configuration, nested as in flows/configs/*.yaml, on top of the site's. An unknown
            key is an error.
    """
    with attended():
        raise NotImplementedError
