"""What reading may cost: memory and time by the bytes that are there, whatever a header claims."""

from tasks.run.fanout import Allowance

_BASE_MB = 1200  # a chest CT of usual size, resampled, however well it is compressed
_MB_PER_MB = 12  # of files: uncompressed, as float, on a finer grid
_BASE_S = 22.0
_S_PER_MB = 0.5  # a slow machine, a slow network file system


def allowance(size: int) -> Allowance:
    """What reading so many bytes may cost: below 10 MB less than 2 GiB, with the process itself, and 30 s."""
    megabytes = size / 2**20
    return Allowance(_BASE_MB + int(_MB_PER_MB * megabytes), _BASE_S + _S_PER_MB * megabytes)
