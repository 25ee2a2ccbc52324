"""What reading may cost: memory and time by the bytes that are there, whatever a header claims."""

from tasks.run.fanout import Allowance, Lost

_BASE_MB = 1200  # a chest CT of usual size, resampled, however well it is compressed
_MB_PER_MB = 12  # of files: uncompressed, as float, on a finer grid
_BASE_S = 22.0
_S_PER_MB = 0.5  # of processor time, on a slow machine
_S_PER_VOXEL = 0.6e-6  # of an oblique volume, three times what it takes
_SMALL_MB = 10.0  # up to here nothing takes longer than this much may
_MORE_S_PER_MB = 3.0  # above it, for an oblique volume of a compressed scan
_WAITING_S = 600.0
_WAITING_SHARE = 20.0  # a machine that does much else, or a slow network file system


def allowance(size: int, *, together: bool = False) -> Allowance:
    """What reading so many bytes may cost: below 10 MB less than 2 GiB, with the process itself, and 30 s of processor time.

    Args:
        size: bytes.
        together: whether they are one file, whatever is in it.
    """
    megabytes = size / 2**20
    seconds = _BASE_S + _S_PER_MB * megabytes
    more = max(_BASE_S + _S_PER_MB * _SMALL_MB - seconds, _MORE_S_PER_MB * (megabytes - _SMALL_MB))
    memory = _BASE_MB + int(_MB_PER_MB * megabytes)
    return Allowance(memory, seconds, _WAITING_S + _WAITING_SHARE * seconds, more_s=more, together=together)


def resampling_s(num_voxels: int) -> float:
    """Processor time to ask for beside that, by the voxels of the result."""
    return _S_PER_VOXEL * num_voxels


def lost_file(lost: Lost) -> tuple[str, str]:
    """Reason code and detail of a file whose reader was lost. Raises: UserError: what it met concerns the whole ingest."""
    if lost.error is not None:
        raise lost.error
    reason = lost.reason if lost.reason in ("too_costly", "too_slow") else "unreadable_file"
    return reason, "its reader died" if lost.reason == "worker_died" else lost.detail
