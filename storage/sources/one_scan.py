"""One scan by its path, apart from any store: a file, or a folder with the files of one series."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from storage.errors import SourceError
from storage.files import sha256_json
from storage.sources.files import FoundFile, check_source, walk_source
from storage.sources.formats import FORMATS, read_source_file
from storage.sources.plausible import check_plausible
from storage.sources.source import Limits, ScanRequest, SourceVolume

_SHOWN = 3  # scans that a message names
_ANY = Limits()


@dataclass(frozen=True)
class OneScan:
    """A scan that was found, not read yet.

    Attributes:
        source: folder of its files.
        files: relative paths, sorted.
        format: name of its format.
        scan_id: a DICOM series' UID, say.
        digest: hash of the hashes of its files, whatever they are called.
    """

    source: Path
    files: tuple[str, ...]
    format: str
    scan_id: str
    digest: str

    def read(self, limits: Limits = _ANY) -> SourceVolume:
        """The scan as acquired; small ones and thick slices, too.

        Args:
            limits: what counts as a scan; slices may be as thick as they are.
        Raises:
            UnusableSeriesError: it is no volume, or not in HU; the message says why.
            SourceError: it has several volumes.
        """
        limits = replace(limits, max_slice_mm=math.inf)
        request = ScanRequest(self.source, self.files, self.scan_id, limits)
        volumes = FORMATS[self.format].load(request)
        first = next(volumes)
        if first.num_parts > 1:
            raise SourceError(
                f"Scan {self.scan_id} has {first.num_parts} volumes, of which only one can be meant. Give the files of one."
            )
        check_plausible(first, limits, request.where)
        return first


def find_scan(path: Path) -> OneScan:
    """The one scan of a file, or of a folder and the folders below.

    Raises: SourceError: nothing is there, no scan, or more than one.
    """
    if not path.exists():
        raise SourceError(f"{path} does not exist. Give one NIfTI file, or a folder with the files of one series.")
    if path.is_file():
        names, source = [path.name], path.parent
    else:
        check_source(path)
        names = sorted(found.path for found in walk_source(path) if isinstance(found, FoundFile))
        source = path
    scans: dict[tuple[str, str], list[tuple[str, str]]] = {}
    reasons: dict[str, int] = {}
    for name in names:
        digest, facts = read_source_file(source, name)
        if facts.scan and not facts.reason:
            scans.setdefault((facts.format, facts.scan), []).append((name, digest))
        else:
            reason = f"{facts.reason}: {facts.detail}" if path.is_file() and facts.detail else facts.reason
            reasons[reason] = reasons.get(reason, 0) + 1
    if len(scans) != 1:
        raise SourceError(
            f"{_found(path, scans, reasons)} Give one NIfTI file, or a folder with the files of one series."
        )
    ((format_name, scan_id), files) = next(iter(scans.items()))
    return OneScan(
        source,
        tuple(name for name, _ in sorted(files)),
        format_name,
        scan_id,
        "sha256:" + sha256_json(sorted(digest for _, digest in files)),
    )


def _found(path: Path, scans: dict[tuple[str, str], list[tuple[str, str]]], reasons: dict[str, int]) -> str:
    if scans:
        ids = sorted(scan_id for _, scan_id in scans)
        more = ", …" if len(ids) > _SHOWN else ""
        return f"{path} has {len(ids)} scans ({', '.join(ids[:_SHOWN])}{more}), of which one can be meant."
    if any(reason.startswith("archive") for reason in reasons):
        return f"{path} has only archives, which are not looked into: unpack them."
    counted = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items())) or "it is empty"
    others = " Radiographs are measured by the operator projection." if "not_ct" in reasons else ""
    return f"{path} has no scan that can be read ({counted}).{others}"
