"""What families say that cannot do what a training or a request asks of them."""

from typing import Any

from prdit_models.conditions import Conditions
from prdit_models.families.family import Given, Request


def refuse_guide(family: Any, request: Request) -> None:
    """Refuse guided sampling of a family that does not say `guided = True`: that its `generate` knows guides.

    Raises: ValueError: a guide was asked for.
    """
    if request.guide is not None and not getattr(family, "guided", False):
        raise ValueError(
            f"Samples cannot be guided towards a measurement by a checkpoint of family {family.title!r}, whose network does not "
            "estimate volumes while it samples; use that of a global transformer or a refiner."
        )


def refuse_conditions(title: str, remedy: str, conditions: Conditions | None) -> None:
    """Refuse conditions of samples where a model takes none, or not these.

    Args:
        title: what it is, such as `a refined model, which takes no labels`.
        remedy: what to do instead, a sentence.
        conditions: of a request.
    Raises: ValueError: there are some.
    """
    if conditions is None:
        return
    if conditions.labels is not None:
        raise ValueError(f"A label was asked for (sample.label) of {title}. {remedy}")
    if conditions.values is None and conditions.mask is not None:
        raise ValueError(f"A mask was asked for (sample.mask) of {title}. {remedy}")
    raise ValueError(f"Conditions were asked for (sample.conditions) of {title}. {remedy}")


def refuse_conditioning(title: str, given: Given, remedy: str = "Leave it out.") -> None:
    """Refuse conditions of a training whose model takes none.

    Args:
        title: of the family, with an article where it needs one.
        given: of the training.
        remedy: what to do instead, a sentence.
    Raises: ValueError: there are some.
    """
    if given.num_classes:
        raise ValueError(f"label_column is set; {title} takes no labels. {remedy}")
    if given.num_values:
        raise ValueError(f"conditions is set; {title} takes no conditions. {remedy}")
    if given.mask_channels:
        raise ValueError(f"mask is set; {title} is shown no mask. {remedy}")
