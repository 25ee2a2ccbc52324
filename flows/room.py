"""The disk guard of the flows: work that writes begins only with enough free disk, after retention has made what room it may."""

import logging
from pathlib import Path

from flows.config import PipelineConfig
from flows.site import SiteConfig, load_site
from storage.bucket_path import BucketPath
from storage.places import as_place
from tasks.maintain.disk import NoRoomError, check_room

logger = logging.getLogger("prdit.maintain")


def make_room(config: PipelineConfig, site: SiteConfig | None = None) -> None:
    """Before work that writes: where too little disk is free, remove what retention does not keep; refuse where that is not enough.

    Args:
        config: names store and working folder.
        site: what is kept, and how much disk stays free; default: this folder's.
    Raises: NoRoomError: nothing may be started. ConfigError: the site's settings cannot be used.
    """
    found = site or load_site()
    folders = [Path(config.workdir), as_place(config.store)]
    folders = [folder for folder in folders if not isinstance(folder, BucketPath)]
    try:
        for folder in folders:
            check_room(folder, min_free_gb=found.retention.min_free_gb)
    except NoRoomError as error:
        from flows.installation import installation, mlflow_address
        from tasks.maintain.run import prune

        notes: list[str] = []
        removed = prune(installation(config, found, mlflow_address()), found.retention, notes)
        freed = sum(each.size_bytes for each in removed) / 1e9
        logger.warning("%s\nRetention removed %.1f GB. %s", error, freed, " ".join(notes))
        for folder in folders:
            check_room(folder, min_free_gb=found.retention.min_free_gb)
