"""The numbers on top of the report: one card for each question a reader asks first."""

from collections.abc import Callable
from dataclasses import dataclass

from prdit_models.metrics.distances import RANDOM_SUFFIX
from storage.documents.report import FigureRecord, Report
from tasks.evaluate.formats import number, whole_percent


@dataclass(frozen=True)
class Question:
    """What a card shows.

    Attributes:
        figure: its name, without the suffix for random features or for a variant.
        title: in the words of a reader.
        beside: the figure of real volumes that it is read by; empty: the floor, where there is one.
        words: what `beside` is of.
        share: whether it is a share of volumes.
    """

    figure: str
    title: str
    beside: str = ""
    words: str = ""
    share: bool = False


QUESTIONS = (
    Question(
        "anatomy_pass_share", "Samples that could be a chest", "anatomy_pass_share_real", "real volumes", share=True
    ),
    Question("copy_rate", "Samples that may be copies", "copy_rate_held_out", "held-out volumes", share=True),
    Question(
        "nearest_training_distance",
        "Samples to nearest training volume",
        "nearest_training_distance_held_out",
        "held-out volumes",
    ),
    Question("ms_ssim", "MS-SSIM of two samples", "ms_ssim_real", "two real volumes"),
    *(
        Question(
            f"ms_ssim_{k}_scales", f"MS-SSIM of two samples, {k} scales", f"ms_ssim_{k}_scales_real", "two real volumes"
        )
        for k in range(2, 5)
    ),
    Question("pairwise_distance", "Between two samples", "pairwise_distance_real", "two real volumes"),
    Question("fid", "FID"),
    Question("kid", "KID"),
    Question("mmd", "MMD"),
    Question("precision", "Precision"),
    Question("coverage", "Coverage"),
    Question("wasserstein", "Wasserstein distance by a critic", "wasserstein_real", "training to held-out volumes"),
    Question("hu_std_ratio", "HU spread, generated / real"),
    Question("hu_histogram_distance", "HU histogram distance"),
)
MOST_CARDS = 8
_NO_BREAK = "\u00a0"
_RANDOM = f"{_NO_BREAK}random{_NO_BREAK}features"  # in the line of its number, however narrow the card


@dataclass(frozen=True)
class Card:
    """One number with what it is read by.

    Attributes:
        title: the question.
        value: the number.
        suffix: its unit, and that its features are random: on the same line.
        lines: interval, and what it is beside.
        blind: whether it does not order the references.
    """

    title: str
    value: str
    suffix: str
    lines: list[str]
    blind: bool


def cards(metrics: Report) -> list[Card]:
    """The first `MOST_CARDS` of `QUESTIONS` that were measured."""
    found = []
    for question in QUESTIONS:
        name = next((n for n in (question.figure, question.figure + RANDOM_SUFFIX) if n in metrics.figures), None)
        if name is not None and metrics.figures[name].value is not None:
            found.append(_card(question, name, metrics))
    return found[:MOST_CARDS]


def _card(question: Question, name: str, metrics: Report) -> Card:
    figure = metrics.figures[name]
    write: Callable[[float | None], str] = whole_percent if question.share else number
    random = _RANDOM if figure.features is not None and metrics.features.random else ""
    lines = []
    if figure.interval:
        low, high = (write(figure.interval[key]) for key in ("low", "high"))
        bounds = f"{low}{_NO_BREAK}to{_NO_BREAK}{high}{random}"
        lines.append(f"{whole_percent(figure.interval['level'])}: {bounds}")
    beside = metrics.figures.get(question.beside)
    words = question.words
    if not question.beside:
        beside, words = metrics.references.get("floor", {}).get(name), "real against real"
    if beside is not None and beside.value is not None:
        lines.append(f"{words}: {write(beside.value)}{random}{_counts(beside) if not question.beside else ''}")
    suffix = f"{figure.unit}{random}".strip()
    return Card(question.title, write(figure.value), suffix, lines, name in metrics.blind)


def _counts(figure: FigureRecord) -> str:
    return f" (n = {figure.n_real}, {figure.n_generated})"
