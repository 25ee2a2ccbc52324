"""With which weights the trainings of a recipe begin when they go on from the champion."""

from collections.abc import Mapping

from storage.artifacts import Ref, input_ref, verify_artifact
from storage.errors import InputError, StorageError


def initial_checkpoints(champion: Ref, starts: Mapping[str, str | None]) -> dict[str, Ref]:
    """The champion's checkpoint for the last training, that which it started from for the training below, and so on.

    Args:
        champion: its checkpoint, of the last training of its recipe.
        starts: the training that each training of the recipe starts from, by name, in order.
    Raises: InputError: the recipe of the champion was another one, or a checkpoint of it is not there any more.
    """
    name: str | None = list(starts)[-1]
    found: dict[str, Ref] = {}
    checkpoint = champion
    while name is not None:
        found[name], below = checkpoint, starts[name]
        if below is None:
            break
        try:
            checkpoint = input_ref(checkpoint, "start")
            verify_artifact(checkpoint)
        except StorageError as error:
            raise InputError(
                f"The trainings cannot go on from the champion: the checkpoint of its training {below!r} is needed, too. {error} "
                "With `start: scratch` in the policy of retraining they always begin with fresh weights."
            ) from error
        name = below
    return {name: found[name] for name in starts if name in found}
