"""`prdit ema`: another average of a training's weights. Imports of heavy libraries wait until the command needs them."""

from typing import Annotated

import typer

from flows.console import Json, Workdir, clear_errors, find_ref, load_settings, run_context, show_outcome


def ema(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="Checkpoint trained with ema_snapshots: its directory, models:/prdit@champion, or a reference."
        ),
    ],
    sigma_rel: Annotated[float, typer.Option(help="Width of the average relative to the training's length.")] = 0.10,
    updates: Annotated[
        int | None, typer.Option(min=1, help="Optimiser step at which it ends; default: the last.")
    ] = None,
    workdir: Workdir = None,
    as_json: Json = False,
) -> None:
    """Make a checkpoint whose EMA weights are a power-function average of a chosen length (EDM2).

    Sample and evaluate it like any other, and compare lengths without training again.
    """
    with clear_errors():
        loaded = load_settings("small", None, workdir=workdir)
        from flows.config import pydantic_explained
        from storage.artifacts import verify_artifact
        from tasks.average.config import AverageConfig
        from tasks.average.run import average_stage
        from tasks.run.progress import show_progress

        ref = find_ref(checkpoint, workdir)
        verify_artifact(ref)
        with pydantic_explained("prdit ema"):
            config = AverageConfig(sigma_rel=sigma_rel, updates=updates)
        with run_context(loaded) as context, show_progress("ema") as progress:
            outcome = average_stage(ref, config, context, progress)
        show_outcome(outcome, as_json)
