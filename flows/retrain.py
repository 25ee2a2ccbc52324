"""The flow `retrain`: new scans to a challenger, which is promoted or held."""

from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from flows.hooks import ATTENDED, DAY_S, retried_where_it_helps
from flows.named_files import config_names, policy_names

SiteChoice = Annotated[str, Field(json_schema_extra={"enum": ["", *config_names()]})]
PolicyChoice = Annotated[str, Field(json_schema_extra={"enum": ["", *sorted({"default", *policy_names()})]})]


@flow(name="retrain", timeout_seconds=14 * DAY_S, **ATTENDED)
def retrain(
    configuration: SiteChoice = "",
    inbox: str = "",
    store: str = "",
    policy: PolicyChoice = "",
    overrides: dict[str, Any] = {},  # noqa: B006  # never changed; the form needs the value itself as default
    arrivals: str = "",
) -> dict[str, Any]:
    """New scans to a challenger: ingest with the drift gate, training when the policy says so, judgement, promotion or not.

    Args:
        configuration: Named configuration that the challenger is trained with. Empty: the site's (.prdit/site.yaml).
        inbox: Folder where new scans arrive, as the worker sees it; read-only. Empty: the site's (.prdit/inbox).
        store: Folder of the volume store that new scans are added to. Empty: the site's (.prdit/store).
        policy: When to train, how, and what is promoted: a policy by name. Empty: the site's.
        overrides: Settings that differ from the configuration, nested as in flows/configs/*.yaml, on top of the site's. An unknown
            key is an error.
        arrivals: Folder of the inbox's ledger and batches. Empty: the site's (.prdit/arrivals).
    """
    with retried_where_it_helps():
        raise NotImplementedError
