"""Which copy of a scan a store lists, whose patient and labels: nothing good is replaced by worse, and nothing alternates."""

import pytest

from storage.documents.volume import ScanFacts, StoredArray, StoredFile, VolumeRecord
from storage.snapshots import Listing
from tasks.ingest.duplicates import by_volume, listed_instead, patients_differ
from tasks.ingest.listing import Seen, listed_with, patient_notes


def record(volume_id: str, scan: str, num_slices: int, pixels: str = "", x_mm: float = 0.0) -> VolumeRecord:
    return VolumeRecord(
        volume_id=volume_id,
        folder=volume_id,
        shape=(num_slices, 4, 4),
        spacing_mm=(1.0, 1.0, 1.0),
        origin_mm=(x_mm, 0.0, 0.0),
        arrays={"0": StoredArray(shape=(num_slices, 4, 4), sha256="0")},
        files={"0/zarr.json": StoredFile(size=1, sha256="0")},
        attributes={"KVP": 120.0},
        scan=ScanFacts(
            scan=scan,
            files_digest=volume_id,
            recipe=1,
            num_slices=num_slices,
            spacing_mm=(1.0, 1.0, 1.0),
            pixels=pixels or volume_id,
        ),
    )


RECORDS = {
    "long": record("long", "1.2", 40),
    "short": record("short", "1.2", 20),
    "corrected": record("corrected", "1.2", 40),
    "other": record("other", "9.9", 30),
    "turned": record("turned", "nifti-1", 40, "long", 1e-5),
    "shifted": record("shifted", "nifti-2", 40, "long", 1.5),
    "turned-short": record("turned-short", "nifti-3", 20, "short"),
}


def seen(volume_id: str, patient: str = "p", **values: object) -> Seen:
    known = bool(values.pop("known", True))
    return Seen(RECORDS[volume_id].scan.scan, volume_id, patient, known, **values)  # type: ignore[union-attr, arg-type]


def ingest(old: Listing, source: str, *scans: Seen, before: dict[str, str] | None = None) -> Listing:
    return listed_with(old, by_volume(scans, listed_instead(old, scans, RECORDS)), RECORDS, source, before or {})


def test_a_longer_copy_replaces_a_shorter_one_and_never_the_other_way_round() -> None:
    short = ingest(Listing(), "B", seen("short"))
    assert list(short.volumes) == ["short"]
    both = ingest(short, "A", seen("long"), seen("other"))
    assert sorted(both.volumes) == ["long", "other"]
    assert ingest(both, "B", seen("short"), before={"1.2": "short"}) == both
    assert (
        ingest(both, "A", seen("short"), before={"1.2": "long"}) == both
    )  # its own source lost slices: the long one stays


def test_two_sources_do_not_alternate() -> None:
    one = ingest(Listing(), "A", seen("long"))
    assert ingest(one, "B", seen("corrected")) == one
    assert ingest(one, "A", seen("long"), before={"1.2": "long"}) == one
    new = ingest(one, "A", seen("corrected"), before={"1.2": "long"})  # the same source exports the scan again
    assert list(new.volumes) == ["corrected"]


def test_what_a_source_no_longer_has_stays_listed() -> None:
    one = ingest(Listing(), "A", seen("long"), seen("other"))
    assert ingest(one, "A", seen("other")) == one


def test_a_withdrawn_volume_and_its_shorter_copies_stay_away() -> None:
    withdrawn = Listing(withdrawn=frozenset({"long"}))
    assert ingest(withdrawn, "A", seen("long")).volumes == {}
    assert ingest(withdrawn, "B", seen("short")).volumes == {}
    assert list(ingest(withdrawn, "A", seen("corrected"), before={"1.2": "long"}).volumes) == ["corrected"]


def test_tables_change_patient_and_labels_and_take_them_back() -> None:
    bare = ingest(Listing(), "A", seen("long", "of-the-scan", known=False))
    assert not bare.volumes["long"].patient_known
    given = ingest(bare, "A", seen("long", "anna", patient_given=True, labels={"nodule": "yes"}))
    assert (given.volumes["long"].patient_key, given.volumes["long"].labels) == ("anna", {"nodule": "yes"})
    assert given.patients_by == given.labels_by == {"long": "A"}
    corrected = ingest(given, "A", seen("long", "anna", patient_given=True, labels={"nodule": "no"}))
    assert corrected.volumes["long"].labels == {"nodule": "no"}
    assert ingest(corrected, "A", seen("long", "of-the-scan", known=False)) == bare  # the rows are gone


def test_a_copy_without_tables_or_identity_takes_nothing_away() -> None:
    one = ingest(Listing(), "A", seen("long", "anna", patient_given=True, labels={"nodule": "yes"}))
    assert ingest(one, "B", seen("long", "of-the-scan", known=False)) == one
    assert ingest(one, "B", seen("long", "pseudonym")) == one
    header = ingest(Listing(), "A", seen("long", "anna"))
    assert ingest(header, "B", seen("long", "pseudonym")) == header
    unknown = ingest(Listing(), "B", seen("long", "of-the-scan", known=False))
    assert ingest(unknown, "moved", seen("long", "of-the-moved-scan", known=False)) == unknown
    assert ingest(unknown, "A", seen("long", "anna")).volumes["long"].patient_key == "anna"


@pytest.mark.parametrize("order", [("nifti", "dicom"), ("dicom", "nifti")])
def test_attributes_come_from_whichever_copy_has_them(order: tuple[str, str]) -> None:
    facts: dict[str, dict[str, object]] = {"nifti": {}, "dicom": {"PatientSex": "F", "KVP": 120.0}}
    now = Listing()
    for name in order:
        now = ingest(now, name, seen("long", attributes=facts[name]))
    assert now.volumes["long"].attributes == facts["dicom"]
    together_ = [seen("long", attributes=facts["nifti"]), seen("turned", attributes={"PatientSex": "F", "KVP": 100.0})]
    assert ingest(Listing(), "both", *together_).volumes["long"].attributes == facts["dicom"]  # 120 in its record


def test_a_patient_id_that_is_corrected_in_its_own_files_counts() -> None:
    one = ingest(Listing(), "A", seen("long", "ana"))
    copied = ingest(one, "B", seen("long", "pseudonym"))
    corrected = ingest(copied, "A", seen("long", "anna"))
    assert corrected.volumes["long"].patient_key == "anna"
    assert (
        ingest(corrected, "A", seen("long", "of-the-scan", known=False)) == corrected
    )  # who anonymises takes nothing away
    assert ingest(corrected, "B", seen("long", "ana")) == corrected
    assert patient_notes(one, corrected, [seen("long", "anna")])[0].startswith(
        "1 scan with another PatientID than at an"
    )
    assert patient_notes(corrected, corrected, [seen("long", "ana")])[0].endswith(
        "name it in patients.csv of this source."
    )
    assert patient_notes(corrected, corrected, [seen("long", "anna")]) == []


def test_a_table_outranks_the_files_of_its_own_and_of_other_sources() -> None:
    given = ingest(ingest(Listing(), "A", seen("long", "ana")), "B", seen("long", "bea", patient_given=True))
    assert ingest(given, "A", seen("long", "anna")) == given
    without_row = ingest(given, "B", seen("long", "pseudonym"))
    assert without_row.volumes["long"].patient_key == "pseudonym"
    assert ingest(without_row, "A", seen("long", "anna")) == without_row
    assert ingest(without_row, "B", seen("long", "bea")).volumes["long"].patient_key == "bea"
    same = ingest(
        ingest(given, "B", seen("long", "bea")), "B", seen("long", "beate")
    )  # the row gave what the files have
    assert same.volumes["long"].patient_key == "beate"


def test_an_id_that_comes_later_may_be_corrected_too() -> None:
    bare = ingest(Listing(), "A", seen("long", "of-the-scan", known=False))
    named = ingest(bare, "B", seen("long", "ana"))
    assert ingest(named, "B", seen("long", "anna")).volumes["long"].patient_key == "anna"
    assert ingest(named, "A", seen("long", "anna")) == named


def test_the_last_source_that_gives_labels_is_heard() -> None:
    one = ingest(Listing(), "A", seen("long", labels={"nodule": "yes"}))
    moved = ingest(one, "moved", seen("long", labels={"nodule": "no"}))
    assert moved.volumes["long"].labels == {"nodule": "no"}
    assert ingest(moved, "A", seen("long")) == moved


def test_patient_and_labels_may_come_from_two_sources_and_go_with_their_own() -> None:
    bare = ingest(Listing(), "A", seen("long", "of-the-scan", known=False))
    both = ingest(bare, "A", seen("long", "anna", patient_given=True))
    both = ingest(both, "B", seen("long", "of-the-scan", known=False, labels={"nodule": "yes"}))
    assert (both.volumes["long"].patient_key, both.volumes["long"].labels) == ("anna", {"nodule": "yes"})
    unlabelled = ingest(both, "B", seen("long", "of-the-scan", known=False))
    assert (unlabelled.volumes["long"].patient_key, unlabelled.volumes["long"].labels) == ("anna", {})
    unnamed = ingest(both, "A", seen("long", "of-the-scan", known=False))
    assert (unnamed.volumes["long"].patient_known, unnamed.volumes["long"].labels) == (False, {"nodule": "yes"})


def test_a_copy_that_is_stored_otherwise_is_listed_once_whichever_comes_first() -> None:
    together = ingest(Listing(), "A", seen("turned"), seen("long"), seen("shifted"))
    assert sorted(together.volumes) == ["long", "shifted"]
    assert ingest(together, "A", seen("long"), seen("shifted"), seen("turned")) == together
    assert ingest(together, "B", seen("turned", "of-the-scan", known=False)) == together
    turned = ingest(Listing(), "B", seen("turned", "of-the-scan", known=False))
    both = ingest(turned, "A", seen("long", "anna", labels={"nodule": "yes"}))
    assert list(both.volumes) == ["turned"]
    assert (both.volumes["turned"].patient_key, both.volumes["turned"].labels) == ("anna", {"nodule": "yes"})
    assert ingest(both, "B", seen("turned", "of-the-scan", known=False)) == both


def test_a_withdrawn_volume_and_a_shorter_copy_do_not_come_back_as_a_copy_that_is_stored_otherwise() -> None:
    assert ingest(Listing(withdrawn=frozenset({"long"})), "A", seen("turned"), seen("long")).volumes == {}
    one = ingest(Listing(), "A", seen("long"))
    assert ingest(one, "B", seen("short"), seen("turned-short")) == one


def test_of_the_patients_of_copies_a_known_one_counts_and_a_table_before_files() -> None:
    copies = [seen("long", "of-the-scan", known=False), seen("turned", "anna")]
    one = ingest(Listing(), "A", *copies)
    assert (one.volumes["long"].patient_key, one.identified_by) == ("anna", {"long": "A"})
    assert ingest(one, "A", *copies) == one
    named = ingest(one, "A", seen("long", "bea"), seen("turned", "anna", patient_given=True))
    assert (named.volumes["long"].patient_key, named.patients_by) == ("anna", {"long": "A"})


def test_copies_under_different_patients_are_named() -> None:
    def note(*scans: Seen) -> list[str]:
        return patients_differ(by_volume(scans, listed_instead(Listing(), scans, RECORDS)))

    (text,) = note(seen("turned", "bea"), seen("long", "anna"))
    assert text.startswith(
        "1 scan here more than once, with the ids of different patients, the first is 1.2, which is nifti-1"
    )
    assert note(seen("turned", "bea", known=False), seen("long", "anna")) == []
    (text,) = note(seen("turned", "bea", patient_given=True), seen("long", "anna"))
    assert text.endswith("the first is nifti-1, which is 1.2 too: the table counts.")
    assert note(seen("turned", "bea", patient_given=True), seen("long", "anna", known=False)) == []
    assert note(seen("shifted", "bea"), seen("long", "anna")) == []


def test_a_scan_that_got_an_id_of_its_own_is_listed() -> None:
    """It was read under the id of another one before, and its volume's record still says so."""
    one = ingest(Listing(), "A", seen("long"))
    assert ingest(one, "B", seen("corrected")) == one  # another copy by its id
    own = Seen("1.99", "corrected", "p", True)
    assert set(ingest(one, "B", own).volumes) == {"long", "corrected"}
    part = Seen("1.2 (acquisition 2)", "corrected", "p", True)
    assert set(ingest(one, "B", part).volumes) == {"long", "corrected"}


def test_another_copy_of_a_withdrawn_volume_is_listed_but_no_shorter_one() -> None:
    withdrawn = Listing(withdrawn=frozenset({"long"}))
    assert set(ingest(withdrawn, "B", seen("corrected")).volumes) == {"corrected"}
    assert ingest(withdrawn, "B", seen("short")) == withdrawn
