"""What a retraining works with: the site's settings, its parameters, and where things are."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.config import PipelineConfig
from flows.installation import site_config
from flows.pipeline import check_sampling
from flows.policy import load_policy
from flows.record import tracking_uri
from flows.site import SiteConfig, load_site
from storage.files import sha256_json
from storage.places import as_folder, as_place
from storage.refs import Ref
from storage.registry import ModelVersion, Registry
from tasks.inbox.config import Timing, check_places
from tasks.retrain.due import Facts
from tasks.retrain.facts import facts_of, newest_snapshot
from tasks.retrain.policy import RetrainPolicy
from tasks.retrain.rounds import Rounds

LOCK = "retrain.lock"  # in the working folder: held by the one retraining that works there


@dataclass(frozen=True)
class Setup:
    """Everything that a retraining is given.

    Attributes:
        site: settings of the installation.
        config: what a challenger is trained with; without a source.
        policy_name, policy: when, how, and what is promoted.
        inbox, arrivals: folders: new scans, and their ledger.
    """

    site: SiteConfig
    config: PipelineConfig
    policy_name: str
    policy: RetrainPolicy
    inbox: Path
    arrivals: Path

    @classmethod
    def of(
        cls,
        configuration: str = "",
        inbox: str = "",
        store: str = "",
        policy: str = "",
        overrides: Mapping[str, Any] | None = None,
        arrivals: str = "",
    ) -> "Setup":
        """From the parameters of the flow; empty text stands for the site's.

        Raises:
            ConfigError: settings that cannot be used, a policy that can never fire, an inbox in the store.
            InputError: what is trained could not be sampled or evaluated.
        """
        site = load_site()
        config = site_config(site, configuration, store, overrides).model_copy(
            update={"source": None, "snapshot": None}
        )
        name = policy.strip() or site.policy
        setup = cls(
            site=site,
            config=config,
            policy_name=name,
            policy=load_policy(name),
            inbox=as_folder(inbox.strip() or site.inbox.folder, "the inbox"),
            arrivals=as_folder(arrivals.strip() or site.inbox.arrivals, "the folder of the arrivals"),
        )
        check_places(setup.inbox, setup.arrivals, setup.store)
        check_sampling(config)
        return setup

    @property
    def store(self) -> Path:
        """The volume store."""
        return as_place(self.config.store)

    @property
    def workdir(self) -> Path:
        """The working folder."""
        return Path(self.config.workdir).resolve()

    @property
    def timing(self) -> Timing:
        """When a series of the inbox counts as complete."""
        return Timing(quiet_s=self.site.inbox.quiet_s)

    @property
    def settings(self) -> str:
        """Digest of policy and configuration: a retraining that was begun with others is not continued."""
        values = {"policy": self.policy.model_dump(mode="json"), "config": self.config.digest()}
        return f"sha256:{sha256_json(values)}"

    def snapshot(self) -> Ref | None:
        """What the store lists now; None: nothing. Raises: StorageError: it is damaged, or has another grid."""
        return newest_snapshot(self.store, self.config.ingest)

    def facts(self, rounds: Rounds, champion: ModelVersion | None) -> Facts:
        """What the policy decides by, now. Raises: StorageError: store or records cannot be read."""
        return facts_of(self.snapshot(), rounds, champion, datetime.now(UTC))

    def is_warm(self, champion: ModelVersion | None) -> bool:
        """Whether a challenger begins with the champion's weights: not with those that must not be used any more."""
        return champion is not None and not champion.refused and self.policy.start == "champion"

    def registry(self) -> Registry:
        """The registered model. Raises: RegistryUnavailableError: MLflow does not answer."""
        return Registry(tracking_uri(self.workdir), workdir=self.workdir)
