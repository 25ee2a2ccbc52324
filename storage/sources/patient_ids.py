"""PatientIDs of a source that may not tell its patients apart: ids that are none, of several issuers, in several spellings.

Only keyed hashes of them are known here.
"""

from collections.abc import Iterable

from storage.patient_key import keys_of_no_ids
from storage.sources.index import ScanFiles
from storage.sources.tables import PATIENTS_CSV
from storage.verdicts import counted


def patient_id_notes(scans: Iterable[ScanFiles], key: bytes) -> list[str]:
    """Sentences about scans whose patients should be looked at.

    Args:
        scans: those whose patient is that of their files.
        key: secret of the patient keys.
    """
    no_ids = keys_of_no_ids(key)
    studies: dict[str, set[str]] = {}
    nameless: dict[str, list[str]] = {}
    issuers: dict[str, dict[str, str]] = {}
    spellings: dict[str, dict[str, str]] = {}
    for scan in scans:
        if scan.patient in no_ids:
            studies.setdefault(scan.alike, set()).add(scan.study or scan.scan_id)
            nameless.setdefault(scan.alike, []).append(scan.scan_id)
        elif scan.patient:
            spellings.setdefault(scan.alike, {}).setdefault(scan.patient, scan.scan_id)
            if scan.issuer:
                issuers.setdefault(scan.patient, {}).setdefault(scan.issuer, scan.scan_id)
    notes = []
    if shared := sorted(one for alike, members in nameless.items() if len(studies[alike]) > 1 for one in members):
        notes.append(
            f"{counted(len(shared), 'scan')} of several studies with a PatientID that is no id (as anonymous, unknown or 0 are), "
            f"the first is {shared[0]}: those with the same one count as one patient. Name their patients in {PATIENTS_CSV}, which "
            "counts for such scans."
        )
    if pairs := sorted(sorted(found.values())[:2] for found in issuers.values() if len(found) > 1):
        notes.append(
            f"{counted(len(pairs), 'PatientID')} of several issuers (IssuerOfPatientID), as in scans {pairs[0][0]} and "
            f"{pairs[0][1]}, and each counts as one patient. Where they are several people, give them different PatientIDs."
        )
    if pairs := sorted(sorted(found.values())[:2] for found in spellings.values() if len(found) > 1):
        notes.append(
            f"{counted(len(pairs), 'PatientID')} written in several ways, which differ in case or blanks alone, as in scans "
            f"{pairs[0][0]} and {pairs[0][1]}, and each way counts as a patient. Where it is one person, write it in one way."
        )
    return notes
