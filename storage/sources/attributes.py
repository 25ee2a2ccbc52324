"""The allow-list: which attributes of a scan may enter the store, whatever its format, and which values of them.

Tags that hold free text could hold anything, a name too. So each has a list of values, or a strict form; and a value that shares
a word with what identifies the patient is dropped. docs/data-model.md has the same table.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from storage.phantom import MANUFACTURER
from storage.privacy import words_of

TEXT_ATTRIBUTES = (
    "StudyInstanceUID", "SeriesInstanceUID", "Manufacturer", "ManufacturerModelName", "ConvolutionKernel", "ScanOptions",
    "BodyPartExamined", "PatientPosition", "PatientSex",
)  # fmt: skip
# Largest value that is believed: what is beyond is a typing error, or a number of another kind.
NUMBER_ATTRIBUTES = {"KVP": 500.0, "SliceThickness": 100.0, "XRayTubeCurrent": 5000.0, "ReconstructionDiameter": 2000.0}
SYNTHETIC = "synthetic"  # attribute of a scan whose file says that no person was scanned; others have none
# Names a label cannot have: the attributes', and those of a volume's other properties.
RESERVED_NAMES = frozenset(
    {
        *TEXT_ATTRIBUTES,
        *NUMBER_ATTRIBUTES,
        "age_years",
        "contrast",
        SYNTHETIC,
        "patient_key",
        "patient_known",
        "volume_id",
        "shape",
        "voxel_mm",
        "field_of_view_mm",
        "scan_length_mm",
    }
)


def terms(text: str) -> frozenset[str]:
    """The words of a text, for a list of values."""
    return frozenset(text.split())


# Word of a manufacturer's name -> the name that is kept, as its scanners write it.
MANUFACTURERS = {
    "ge": "GE MEDICAL SYSTEMS", "siemens": "SIEMENS", "philips": "Philips", "toshiba": "TOSHIBA", "canon": "CANON_MEC",
    "hitachi": "Hitachi Medical Corporation", "fujifilm": "FUJIFILM", "uih": "UIH", "united": "UIH", "neusoft": "Neusoft",
    "picker": "Picker International, Inc.", "marconi": "Marconi Medical Systems, Inc.", "elscint": "Elscint", "imatron": "Imatron",
    "shimadzu": "SHIMADZU", "samsung": "SAMSUNG", "neurologica": "NeuroLogica", "minfound": "MinFound", "anke": "ANKE",
    "varian": "Varian Medical Systems", "elekta": "ELEKTA", "accuray": "Accuray", "electric": "GE MEDICAL SYSTEMS",
    "prdit": MANUFACTURER,
}  # fmt: skip
OTHER_MANUFACTURER = "other"
# Defined terms of Body Part Examined (PS3.16 annex L), and three that scanners write.
BODY_PARTS = terms(
    "ABDOMEN ABDOMENPELVIS ADRENAL ANKLE AORTA ARM AXILLA BACK BLADDER BRAIN BREAST BRONCHUS BUTTOCK CALCANEUS CALF CAROTID "
    "CEREBELLUM CERVIX CHEEK CHEST CHESTABDOMEN CHESTABDPELVIS CIRCLEOFWILLIS CLAVICLE COCCYX COLON CORNEA CORONARYARTERY CSPINE "
    "CTSPINE DUODENUM EAR ELBOW ESOPHAGUS EXTREMITY EYE EYELID FACE FEMUR FINGER FOOT GALLBLADDER HAND HEAD HEADNECK HEART HIP "
    "HUMERUS IAC ILEUM ILIUM JAW JEJUNUM KIDNEY KNEE LARYNX LEG LIVER LSPINE LSSPINE LUNG MAXILLA MEDIASTINUM MOUTH NECK NECKCHEST "
    "NECKCHESTABDOMEN NECKCHESTABDPELV NOSE ORBIT OVARY PANCREAS PAROTID PATELLA PELVIS PENIS PHARYNX PROSTATE RECTUM RIB SCALP "
    "SCAPULA SCLERA SCROTUM SHOULDER SKULL SPINE SPLEEN SSPINE STERNUM STOMACH SUBMANDIBULAR TESTIS THIGH THUMB THYMUS THYROID "
    "TLSPINE TMJ TOE TONGUE TRACHEA TSPINE URETER URETHRA UTERUS VAGINA VULVA WHOLEBODY WRIST ZYGOMA THORAX TORSO SELLA"
)
_POSITIONS = terms("HFP HFS HFDR HFDL FFP FFS FFDR FFDL LFP LFS RFP RFS AFDR AFDL PFDR PFDL")
# A kernel is a code such as B40f, FC51, I30f, Br40d, YA, or made of these words.
_KERNEL_CODE = re.compile(r"[A-Za-z]{0,3}\d{1,3}[a-z]{0,2}|[A-Z]{1,2}")
_KERNEL_WORDS = terms(
    "standard soft sft lung lng bone bon boneplus bone+ detail dtl edge edg chst chest sharp smooth ultra body head brain "
    "abdomen asir asir-v idose imr veo aidr aice safire admire dlir hd plus low medium mild high strong recon std ultrasharp"
)
_MODEL = re.compile(r"[A-Za-z0-9 ._+/()-]{1,32}")
_MODEL_WORDS = terms(
    "lightspeed brightspeed hispeed highspeed prospeed optima revolution discovery evo maxima frontier apex ascend "
    "elite hdr plus ultra pro vct qxi pet mct ict somatom sensation emotion definition volume zoom access flash edge "
    "drive force now top all sim open confidence perspective spirit scope balance duo power naeotom alpha peak cite "
    "biograph horizon vision mcts truepoint symbia intevo brilliance big bore ingenuity iqon incisive spectral vereos "
    "gemini precedence brightview idt aquilion prime one genesis edition precision lightning start serve exceed "
    "asteion activion alexion astelion celesteion xpress xvision scenaria supria eclos presto pronto robusto uct umi "
    "umr atlas neuviz prudence glory epoch fct speedia anatom insitum quantum phantom cardiac dose excel twin helix "
    "tomoscan acqsim synergy infinity versahd cbct tomotherapy radixact halcyon edgect omnitom ceretom bodytom "
    "scintron nanoscan scanner standard advance select elect performance premium dual energy system slice"
)
_OPTION = re.compile(r"[A-Z0-9_ ]{1,16}")
_OPTION_WORDS = terms(
    "HELICAL AXIAL MODE HELIX SPIRAL SEQUENTIAL SEQUENCE STEP SHOOT CINE SCOUT SURVIEW TOPOGRAM NORMAL CT VOLUME TILTED DVOLUME "
    "DYNAMIC DUAL ENERGY GATED GATING CARDIAC ECG PROSPECTIVE RETROSPECTIVE RESPIRATORY ROTATE STATIONARY CONTINUOUS SHUTTLE GSI "
    "FAST HIGH PITCH PULSE TUBE BODY HEAD CHEST LUNG CTA WIDE ULTRA SINGLE MULTI SCAN FLASH NONE"
)
_UID = re.compile(r"[0-2](\.\d+)+")
_LONG_NUMBER = re.compile(r"\d{5}")
# Free text could hold anything: only these characters, and only this many of them, are kept.
_UNSAFE = re.compile(r"[^A-Za-z0-9 ._+/\\()-]")
MAX_TEXT = 64
MAX_UID = 64


def safe_text(text: str) -> str:
    """Text that the user gives (labels) as it may enter the store: at most `MAX_TEXT` letters, digits, spaces and `._+/\\()-`."""
    return _UNSAFE.sub("", text)[:MAX_TEXT]


def safe_attributes(values: Mapping[str, Any], identifying: frozenset[str]) -> dict[str, Any]:
    """What may be kept of attributes as they stand in a header.

    Args:
        values: by name; text, a sequence of texts, or a number.
        identifying: words of the header that may identify the patient, see `storage.privacy.words_of`.
    Returns: of the texts those whose value is one that the attribute can have, and that share no word with `identifying` but words
        of kernels; numbers as float.
    """
    found: dict[str, Any] = {}
    for name in TEXT_ATTRIBUTES:
        text = _text(values.get(name))
        kept = _SAFE[name](text) if text else ""
        if kept and (name in _LISTED or not (words_of(kept) & identifying) - _KERNEL_WORDS):
            found[name] = kept
    for name, largest in NUMBER_ATTRIBUTES.items():
        try:
            number = float(values[name])
        except (KeyError, TypeError, ValueError):
            continue
        if math.isfinite(number) and 0 <= number <= largest:
            found[name] = number
    return found


def is_uid(text: str) -> bool:
    """Whether a text has the form of a DICOM UID (leading zeros are let pass, as some scanners write them)."""
    return len(text) <= MAX_UID and _UID.fullmatch(text) is not None


def _text(value: Any) -> str:
    r"""A value as one text, several of them separated by `\`."""
    if value is None:
        return ""
    return (value if isinstance(value, str) else "\\".join(str(v) for v in _several(value))).strip()


def _several(value: Any) -> Any:
    return value if hasattr(value, "__iter__") else [value]


def _uid(text: str) -> str:
    return text if is_uid(text) else ""


def _manufacturer(text: str) -> str:
    words = re.split(r"[^a-z]+", text.casefold())
    return next((MANUFACTURERS[word] for word in words if word in MANUFACTURERS), OTHER_MANUFACTURER)


def _model(text: str) -> str:
    known = all(len(word) < 3 or word.casefold() in _MODEL_WORDS for word in re.findall("[A-Za-z]+", text))
    return text if known and _MODEL.fullmatch(text) and not _LONG_NUMBER.search(text) else ""


def _kernel(text: str) -> str:
    words = re.split(r"[\s\\_/,-]+", text)
    known = all(_KERNEL_CODE.fullmatch(word) or word.casefold() in _KERNEL_WORDS for word in words)
    return text if known and len(text) <= MAX_TEXT else ""


def _options(text: str) -> str:
    several = text.split("\\")
    known = all(len(word) < 3 or word in _OPTION_WORDS for word in re.findall("[A-Z]+", text))
    fine = known and all(_OPTION.fullmatch(one) and not _LONG_NUMBER.search(one) for one in several)
    return text if fine and len(text) <= MAX_TEXT else ""


def _one_of(terms: frozenset[str]) -> Callable[[str], str]:
    return lambda text: text.upper() if text.upper() in terms else ""


_SAFE: dict[str, Callable[[str], str]] = {
    "StudyInstanceUID": _uid,
    "SeriesInstanceUID": _uid,
    "Manufacturer": _manufacturer,
    "ManufacturerModelName": _model,
    "ConvolutionKernel": _kernel,
    "ScanOptions": _options,
    "BodyPartExamined": _one_of(BODY_PARTS),
    "PatientPosition": _one_of(_POSITIONS),
    "PatientSex": _one_of(frozenset("FMO")),
}
# Of a list whatever the header says elsewhere: a patient called Lung or Philips has a kernel and a scanner, too.
_LISTED = frozenset({"Manufacturer", "BodyPartExamined", "PatientPosition", "PatientSex"})
