"""What a network is given beside the volume and the time: what is known of the volume that it should estimate."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

_SIZES = (
    "num_classes",
    "num_values",
    "mask_channels",
)  # entries of a model's description, above 0 where it takes such conditions


class Conditions(NamedTuple):
    """Conditions of a batch, each of which a model may take or not; row i is of volume i.

    Attributes:
        labels: integers in [0, num_classes], shape (B,); num_classes is "no label".
        values: encoded numbers and categories, float32, shape (B, K); a row of zeros is "nothing known".
        mask: shares of the cells of a coarse mask, by channel, float32, shape (B, M, s, s, s) with s = S / mask_cell; zeros are
            "none given".
    """

    labels: Tensor | None = None
    values: Tensor | None = None
    mask: Tensor | None = None

    def rows(self, which: slice | list[int] | Tensor) -> Self:
        """Those of some volumes."""
        return self._of_each(lambda part: part[which])

    def repeated(self, count: int) -> Self:
        """Those of one volume, for a batch of so many."""
        return self._of_each(lambda part: part.expand(count, *part.shape[1:]))

    def to(self, device: torch.device) -> Self:
        """On a device."""
        return self._of_each(lambda part: part.to(device, non_blocking=True))

    def nothing(self, no_label: int) -> Self:
        """As many rows of the same parts, of which nothing is known.

        Args:
            no_label: the integer that means "no label".
        """
        empty = self._of_each(torch.zeros_like)
        return empty._replace(labels=None if self.labels is None else torch.full_like(self.labels, no_label))

    def dropped(self, gone: Tensor, no_label: int) -> Self:
        """Nothing is known of some volumes any more: all conditions of a volume go together.

        Args:
            gone: which, bool, shape (B,).
            no_label: the integer that means "no label".
        """
        return self._with(self.nothing(no_label), lambda own, none: torch.where(_along(gone, own), none, own))

    def joined(self, other: "Conditions") -> Self:
        """Rows of these, then those of others with the same parts."""
        return self._with(other, lambda own, more: torch.cat([own, more]))

    def _of_each(self, change: Callable[[Tensor], Tensor]) -> Self:
        return type(self)(*(None if part is None else change(part) for part in self))

    def _with(self, other: "Conditions", change: Callable[[Tensor, Tensor], Tensor]) -> Self:
        pairs = zip(self, other, strict=True)
        return type(self)(*(None if own is None or more is None else change(own, more) for own, more in pairs))


def takes_conditions(description: Mapping[str, Any]) -> bool:
    """Whether a model takes conditions, by its description."""
    return any(description.get(name, 0) for name in _SIZES)


def _along(gone: Tensor, part: Tensor) -> Tensor:
    """One flag per row, in as many axes as a part has."""
    return gone.view(-1, *(1,) * (part.dim() - 1))
