"""Volumes that are read more than once by a metric: the last ones stay in memory."""

from collections import OrderedDict
from collections.abc import Callable

from prdit_models.metrics.metric import Hu

MOST_BYTES = 256 * 2**20


class Recent:
    """`Side.read` that keeps the volumes used last.

    Args:
        read: a volume by its id.
        most_bytes: of the volumes kept; the last one is kept however large it is.
    """

    def __init__(self, read: Callable[[str], Hu], most_bytes: int = MOST_BYTES) -> None:
        self._read = read
        self._most_bytes = most_bytes
        self._kept: OrderedDict[str, Hu] = OrderedDict()

    def __call__(self, name: str) -> Hu:
        """The volume; the array is shared, so it must not be written to."""
        if name in self._kept:
            self._kept.move_to_end(name)
        else:
            self._kept[name] = self._read(name)
            while len(self._kept) > 1 and sum(hu.nbytes for hu in self._kept.values()) > self._most_bytes:
                self._kept.popitem(last=False)
        return self._kept[name]
