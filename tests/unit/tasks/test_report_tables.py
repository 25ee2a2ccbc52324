"""The report's tables, cards on top and stacks of slices, from documents and arrays by hand."""

import io

import numpy as np
import pytest
from PIL import Image

from prdit_models.metrics.neighbours import ShiftSearch
from storage.documents.samples import Excluded, Redraw, Verdict
from tasks.evaluate.drawn import drawn_table, selection_warnings
from tasks.evaluate.shown import closest_pairs, laid_on, pair_caption, sample_caption
from tasks.evaluate.stacks import TILE, offsets_mm, pair_stacks, shifted, slice_places, volume_stacks
from tasks.evaluate.summary import MOST_CARDS, cards
from tasks.evaluate.tables import GROUPS, explanations, figure_groups, floor_size, footnotes, title_of, undefined
from tests.unit.tasks.reports import figure, report, samples

FID = "fid_random_features"
INTERVAL = {"low": 1.0, "high": 3.0, "level": 0.95, "method": "m"}


def test_a_row_has_its_floor_its_degraded_values_and_the_sentence_of_a_blind_figure() -> None:
    made = report(
        {FID: figure(2.0, features="sha256:0"), "toy_air": figure(0.5)},
        references={
            "floor": {FID: figure(1.0, 2)},
            "real": {FID: figure(1.5, 2)},
            "blurred": {FID: figure(9.0, 2)},
            "noised": {FID: figure(5.0, 2)},
        },
        blind={FID: "It is blind."},
    )
    first, other = figure_groups(made)
    assert (first.title, other.title) == ("Distances between the sets", "Other metrics")
    (row,) = first.rows
    assert row.floor is not None
    assert row.blurred is not None
    assert row.noised is not None
    assert (row.floor.value, row.blurred.value, row.noised.value, row.floor.n_real) == (1.0, 9.0, 5.0, 2)
    assert (row.blind, row.about.better, row.footnote) == ("It is blind.", "lower", 0)
    (plain,) = other.rows
    assert (plain.title, plain.floor, plain.blind, plain.about.better) == ("toy_air", None, "", "")


def test_every_figure_of_random_features_says_so_in_its_title() -> None:
    made = report(
        {
            "new_distance": figure(1.0, features="sha256:0"),
            FID: figure(1.0, features="sha256:0"),
            "hu_mean_real": figure(1.0),
        }
    )
    assert title_of("new_distance", made) == "new_distance (random features)"
    assert title_of(FID, made).count("random features") == 1
    assert title_of("hu_mean_real", made) == "Mean, real"
    trained = made.features.model_copy(update={"random": False})
    assert title_of("new_distance", made.model_copy(update={"features": trained})) == "new_distance"


def test_shared_notes_stand_below_the_table_once() -> None:
    made = report(
        {"a": figure(1.0, note="same"), "b": figure(1.0, note="own"), "c": figure(1.0, note="same"), "d": figure(1.0)}
    )
    assert footnotes(figure_groups(made)) == ["same"]
    (group,) = figure_groups(made)
    assert [row.footnote for row in group.rows] == [1, 0, 1, 0]
    assert explanations(figure_groups(made)) == []


def test_figures_without_a_value_stand_below_the_table_with_their_reason() -> None:
    made = report({"fid": figure(None, note="Too few."), "kid": figure(None, note="Too few."), "mmd": figure(1.0)})
    (group,) = figure_groups(made)
    assert [row.name for row in group.rows] == ["mmd"]
    assert undefined(made) == [("FID, all real volumes; KID, all real volumes", "Too few.")]


def test_sources_and_caveats_stand_once_for_figures_that_share_a_caveat() -> None:
    made = report({"fid": figure(1.0), "fid_val": figure(1.0), "hu_mean_real": figure(1.0)})
    ((titles, source, caveat),) = explanations(figure_groups(made))
    assert titles == "FID, all real volumes; FID, held-out volumes only"
    assert "Heusel" in source
    assert "biased upward" in caveat


def test_the_size_of_the_floor_is_said_once_where_it_is_one() -> None:
    figures = {"fid": figure(1.0), "kid": figure(1.0), "hu_mean_real": figure(1.0)}
    floor = {"fid": figure(1.0, 2), "kid": figure(1.0, 2), "hu_mean_real": figure(1.0, 3)}
    assert floor_size(figure_groups(report(figures, references={"floor": floor}))) == "2, 2"
    floor["kid"] = figure(1.0, 3)
    assert floor_size(figure_groups(report(figures, references={"floor": floor}))) == ""


def test_headings_name_metrics_once() -> None:
    names = [name for group in GROUPS.values() for name in group]
    assert len(names) == len(set(names))


def test_cards_show_interval_floor_and_random_features_in_the_line_of_the_value() -> None:
    made = report(
        {
            FID: figure(2.0, features="sha256:0", interval=INTERVAL),
            "anatomy_pass_share": figure(0.75, interval=INTERVAL | {"low": 0.4, "high": 0.9}),
            "anatomy_pass_share_real": figure(1.0),
            "hu_std_ratio": figure(None),
        },
        references={"floor": {FID: figure(1.25, 2)}},
        blind={FID: "It is blind."},
    )
    share, fid = cards(made)
    assert (share.value, share.suffix, share.lines) == (
        "75 %",
        "",
        ["95 %: 40 %\u00a0to\u00a090 %", "real volumes: 100 %"],
    )
    assert (fid.value, fid.suffix, fid.blind) == ("2.000", "random\u00a0features", True)
    assert fid.lines == [
        "95 %: 1.000\u00a0to\u00a03.000\u00a0random\u00a0features",
        "real against real: 1.250\u00a0random\u00a0features (n = 2, 2)",
    ]
    assert (
        len(cards(report({name: figure(1.0) for name in ("fid", "kid", "mmd", "ms_ssim", "precision")}))) <= MOST_CARDS
    )


@pytest.mark.parametrize(("size", "rows", "count"), [(8, 8, 8), (32, 8, 16), (128, 8, 21), (128, 96, 8), (256, 1, 23)])
def test_slices_are_even_contain_the_middle_and_fit_the_page(size: int, rows: int, count: int) -> None:
    places = slice_places(size, rows)
    assert size // 2 in places
    assert len(places) == count
    assert offsets_mm(size, places, 2.0)[list(places).index(size // 2)] == 0.0


def test_a_stack_has_the_slices_of_its_plane_in_order() -> None:
    hu = np.full((8, 8, 8), -1350.0, dtype=np.float32)  # black in both windows
    hu[6] = 400.0  # white: one axial slice
    hu[:, :, 1] = np.where(hu[:, :, 1] > 0, 400.0, 225.0)  # and the second sagittal one
    stacks = volume_stacks(hu, range(8))
    assert [stack.label for stack in stacks[:4]] == [
        "axial, lung window",
        "coronal, lung window",
        "sagittal, lung window",
        "axial, mediastinal window",
    ]
    assert stacks[0].marks == ("R", "L", "A", "P")

    def brightness(number: int) -> list[float]:
        picture = np.asarray(Image.open(io.BytesIO(stacks[number].webp)).convert("L"), dtype=float)
        return [float(part.mean()) for part in picture.reshape(8, TILE, TILE)]

    assert int(np.argmax(brightness(0))) == 6
    assert int(np.argmax(brightness(2))) == 1
    assert brightness(3)[0] < 60 < brightness(3)[6]


def test_a_pair_is_moved_to_where_it_fits_and_its_difference_is_gray_there() -> None:
    rng = np.random.default_rng(0)
    training = rng.normal(-500, 200, (8, 8, 8)).astype(np.float32)
    generated = shifted(training, (2, 0, -1))
    assert generated[2, 3, 0] == training[0, 3, 1]
    assert np.isnan(generated[:2]).all()
    assert np.isnan(generated[:, :, 7]).all()
    again = shifted(training, (0, 0, 0))
    np.testing.assert_array_equal(again, training)
    stacks = pair_stacks(np.nan_to_num(generated, nan=-1000.0), generated, range(8))
    assert [stack.label for stack in stacks[:3]] == [
        "axial, generated volume",
        "axial, training volume",
        "axial, difference",
    ]
    difference = np.asarray(Image.open(io.BytesIO(stacks[2].webp)).convert("L"))
    assert abs(difference.astype(int) - 128).max() <= 3


def test_a_mirrored_copy_is_shown_mirrored_and_says_so() -> None:
    training = np.random.default_rng(0).normal(-500, 200, (8, 8, 8)).astype(np.float32)
    generated = np.nan_to_num(shifted(training[..., ::-1], (1, 0, -2)), nan=-500.0)
    distance, shift = ShiftSearch(generated, 2)(training[..., ::-1])
    pair = {"generated": "g0", "training": "v1", "distance_hu": distance, "shift": shift, "copy": True}
    moved = laid_on(training, pair | {"mirrored": True})
    there = ~np.isnan(moved)
    np.testing.assert_array_equal(moved[there], generated[there])
    assert not np.allclose(laid_on(training, pair | {"mirrored": False})[there], generated[there])
    assert "v1, mirrored left to right, moved by 1 × 0 × -2" in pair_caption(pair | {"mirrored": True})


def test_captions_say_what_is_known() -> None:
    pair = {
        "generated": "g0",
        "training": "v1",
        "distance_hu": 41.6,
        "shift": [1, 0, -2],
        "mirrored": False,
        "copy": True,
    }
    made = report(
        {},
        details={
            "memorisation": {"closest": [pair]},
            "anatomy": {"generated": {"g0": {"failed": ["lung_hu"]}, "g1": {"failed": []}}},
        },
    )
    assert closest_pairs(made) == [pair]
    assert closest_pairs(report({})) == []
    assert (
        pair_caption(pair)
        == "g0 and training volume v1, moved by 1 × 0 × -2 voxels (z, y, x): 42 HU apart; counts as a copy"
    )
    assert sample_caption("g0", made) == ("g0: outside the limits of mean of the lungs", True)
    assert sample_caption("g1", made) == ("g1: inside all limits", False)
    assert sample_caption("g0", report({})) == ("g0", False)


def test_samples_that_were_selected_say_so_and_how_often() -> None:
    whole = samples()
    assert selection_warnings(whole) == []
    assert ("Drawn again by policy", "never (sample.redraw.most is 0)") in drawn_table(whole)
    assert ("Could be a chest, of those kept", "3 of 3") in drawn_table(whole)
    verdicts = [Verdict(plausible=True), Verdict(plausible=False, failed=["lung_hu"]), Verdict(plausible=True)]
    excluded = Excluded(index=3, seed=9, tries=3, reason="not_finite", sentence="NaN.")
    redraw = Redraw(most=2, judged=True, num_redrawn=3, tries=[1, 3, 2])
    some = samples(num_asked=4, verdicts=verdicts, redraw=redraw, excluded=[excluded])
    redrawn, missing = selection_warnings(some)
    assert redrawn.startswith("The samples are selected: 3 of 4 volumes were drawn again, at most 2 times each")
    assert missing == "1 of the 4 volumes asked for are missing (not finite: 1)."
    rows = dict(drawn_table(some))
    assert rows["Could be a chest, of those kept"] == "2 of 3"
    assert rows["Outside the limits of"] == "mean of the lungs (1)"
    assert rows["Drawings per volume that was kept"] == "1 after 1, 1 after 2, 1 after 3"
    assert rows["Left out: not finite"] == "1"
    not_judged = samples(verdicts=[Verdict()] * 3, redraw=Redraw(most=1, judged=False, num_redrawn=1, tries=[1, 1, 2]))
    assert dict(drawn_table(not_judged))["Could be a chest, of those kept"] == "not judged when they were drawn"
    assert "because they were not finite." in selection_warnings(not_judged)[0]
