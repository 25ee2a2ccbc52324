"""Brings the series of a plan into a folder: what is there and whole stays, every image is checked against the archive."""

import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from storage.documents.fetch_plan import FetchPlan, PlannedSeries
from storage.errors import DamagedArtifactError
from storage.files import naming_path, remove_leftovers, write_text_atomic
from storage.idc_bucket import AMAZON, BucketObject, PublicBucket
from tasks.fetch.attribution import NAME as ATTRIBUTION
from tasks.fetch.attribution import attribution
from tasks.fetch.plan import check_space, series_folder
from tasks.run.progress import Advance

CONNECTIONS = 8  # each works on one series


@dataclass
class Fetched:
    """What a fetch did.

    Attributes:
        num_downloaded, num_bytes: images that were downloaded, and their size.
        num_there: images that were there already, with the archive's size and MD5.
        num_size_only: images, of both kinds, for which the archive has no MD5, so only their size was checked.
    """

    num_downloaded: int = 0
    num_bytes: int = 0
    num_there: int = 0
    num_size_only: int = 0


@dataclass
class _Work:
    """What the connections share: when to stop, and what is done."""

    total: int
    progress: Advance | None
    fetched: Fetched = field(default_factory=Fetched)
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, item: BucketObject, *, downloaded: bool) -> None:
        with self.lock:
            done = self.fetched
            done.num_downloaded += downloaded
            done.num_bytes += item.size if downloaded else 0
            done.num_there += not downloaded
            done.num_size_only += item.md5 is None
            if self.progress:
                self.progress(done.num_downloaded + done.num_there, self.total)


def fetch(
    plan: FetchPlan,
    folder: Path,
    *,
    endpoint: str = AMAZON,
    connections: int = CONNECTIONS,
    progress: Advance | None = None,
) -> Fetched:
    """Download what a folder lacks of a plan. Plan and attribution are written first, so that the same call goes on after a kill.

    Args:
        plan: that of `plan_for` this folder.
        folder: made when missing.
        endpoint: address of the S3 server.
        connections: series that are downloaded at once.
        progress: called with (done, total) images.
    Raises:
        InputError: it does not fit on the disk, or a package is missing.
        DamagedArtifactError: an image, or what is listed of a series, is not what the archive says.
        MissingArtifactError, UnreadableError: a series is not there, access is denied, or there is no network.
        UnwritableError: the disk is full, read-only, or access is denied.
    """
    check_space(folder, plan)
    buckets = {name: PublicBucket(name, endpoint) for name in sorted({each.bucket for each in plan.series})}
    plan.save(folder)
    write_text_atomic(folder / ATTRIBUTION, attribution(plan))
    remove_leftovers(folder, below=True)
    work = _Work(plan.num_images, progress)
    with ThreadPoolExecutor(connections, thread_name_prefix="fetch") as pool:
        waiting = [pool.submit(_series, buckets[each.bucket], each, folder, work) for each in plan.series]
        try:
            for future in as_completed(waiting):
                future.result()
        except BaseException:
            work.stop.set()
            pool.shutdown(wait=False, cancel_futures=True)  # those at work end after their image
            raise
    return work.fetched


def _series(bucket: PublicBucket, series: PlannedSeries, folder: Path, work: _Work) -> None:
    """Download what is missing of one series."""
    if work.stop.is_set():
        return
    listed = _listed(bucket, series)
    place = series_folder(folder, series)
    with naming_path(place):
        place.mkdir(parents=True, exist_ok=True)
    for item in listed:
        if work.stop.is_set():
            return
        path = place / PurePosixPath(item.key).name
        whole = path.is_file() and not item.differs(path)
        if not whole:
            bucket.download(item, path)
        work.note(item, downloaded=not whole)


def _listed(bucket: PublicBucket, series: PlannedSeries) -> list[BucketObject]:
    """The objects of a series, as many and as large as the index says."""
    listed = bucket.objects(series.prefix)
    names = {PurePosixPath(item.key).name for item in listed}
    size = sum(item.size for item in listed)
    if len(names) != series.num_images or len(names) != len(listed) or size != series.num_bytes:
        raise DamagedArtifactError(
            f"s3://{bucket.name}/{series.prefix}/ has {len(listed)} images of {size} bytes, the index says {series.num_images} of "
            f"{series.num_bytes} (series {series.series_uid}). Install the newest index (pip install -U idc-index-data) and fetch "
            "into another folder."
        )
    return listed
