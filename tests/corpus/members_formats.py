"""Scans in one file: NIfTI, NRRD, MetaImage, numpy arrays; good ones, and what is wrong with them (kind 23)."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name its own documentation uses

from tests.corpus.classic import scan
from tests.corpus.member import Expect, Place, Write, member
from tests.corpus.members_valid import one
from tests.corpus.world import Array, Geometry, Truth

_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def values(place: Place, geometry: Geometry) -> Array:
    """HU (k, j, i) of the world."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in geometry.shape), indexing="ij")[::-1], axis=-1)
    return place.world.hu(index @ geometry.matrix[:3, :3].T + geometry.matrix[:3, 3])


def nifti(
    path: Path,
    stored: Array,
    geometry: Geometry,
    *,
    kind: type[Any] = nibabel.Nifti1Image,
    change: Callable[[Any], Any] = lambda header: None,
    slope: float = 1.0,
    intercept: float = 0.0,
) -> None:
    """Write values (k, j, i) with both forms coded, in millimetres; `change` may alter the header."""
    affine = _RAS @ geometry.matrix
    image = kind(stored.T, affine)
    image.header.set_data_dtype(stored.dtype)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    header = image.header.copy()
    header.set_slope_inter(slope, intercept)
    change(header)
    header.set_data_offset(header.single_vox_offset)
    data = header.binaryblock + b"\0" * (header.single_vox_offset - header.sizeof_hdr)
    data += stored.astype(header.get_data_dtype()).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data, 1) if path.name.endswith(".gz") else data)


def _right(place: Place, geometry: Geometry, **limits: Any) -> Truth:
    return Truth(geometry, place.world.hu, **limits)


def _nifti(name: str, dtype: str, *, geometry: Callable[[Place], Geometry] | None = None, **how: Any) -> Write:
    def write_it(place: Place) -> Expect:
        lies = geometry(place) if geometry else place.world.geometry
        slope, intercept = how.get("slope", 1.0), how.get("intercept", 0.0)
        stored = (values(place, lies) - intercept) / slope
        nifti(place.folder / name, (np.rint(stored) if dtype[1] == "i" else stored).astype(dtype), lies, **how)
        return Expect(volumes=(_right(place, lies),))

    return write_it


def _whole(place: Place) -> Geometry:
    return place.world.whole


def _left_handed(place: Place) -> Geometry:
    """Index i towards the right, so that the matrix has the other handedness."""
    step = place.world.whole.matrix[:3, 2]
    return place.world.whole.turned(step=tuple(-step))


for _name, _write in {
    "nifti_float": _nifti("a.nii", "<f4"),
    "nifti_gz": _nifti("a.nii.gz", "<f4"),
    "nifti_int16": _nifti("a.nii", "<i2", geometry=_whole),
    "nifti_int16_scaled": _nifti("a.nii.gz", "<i2", slope=0.0625, intercept=-1000.0),
    "nifti_double": _nifti("a.nii", "<f8"),
    "nifti_2": _nifti("a.nii.gz", "<f4", kind=nibabel.Nifti2Image),
    "nifti_left_handed": _nifti("a.nii.gz", "<i2", geometry=_left_handed),
    "nifti_without_extension": _nifti("a", "<f4"),
    "nifti_slope_unset": _nifti("a.nii", "<f4", change=lambda header: _slope_unset(header)),
    "nifti_qform_alone": _nifti("a.nii", "<f4", change=lambda h: h.set_sform(None, code=0)),
    "nifti_sform_alone": _nifti("a.nii", "<f4", change=lambda h: h.set_qform(None, code=0)),
}.items():
    member("valid", "formats", name=_name)(_write)


def _broken_nifti(reason: str, spoil: Callable[[Array], Array] | None = None, **how: Any) -> Write:
    def write_it(place: Place) -> Expect:
        lies = place.world.geometry
        stored = values(place, lies).astype("<f4")
        nifti(place.folder / "a.nii.gz", spoil(stored) if spoil else stored, lies, **how)
        good = scan(place, hu=lambda w: place.world.hu(w) - 35)
        return one(place, good, reasons=(reason,))

    return write_it


def _planes_of(value: float) -> Callable[[Array], Array]:
    def spoil(stored: Array) -> Array:
        stored = stored.copy()
        stored[5:8] = value
        return stored

    return spoil


def _shift_qform(header: Any) -> None:
    affine = header.get_best_affine()
    affine[:3, 3] += 12.0
    header.set_qform(affine, code=1)


def _turn_qform(header: Any) -> None:
    affine = header.get_best_affine()
    header.set_qform(affine @ np.diag([-1.0, -1.0, 1.0, 1.0]), code=1)


def _no_codes(header: Any) -> None:
    header["sform_code"] = header["qform_code"] = 0


def _slope_unset(header: Any) -> None:
    header["scl_slope"] = header["scl_inter"] = np.nan  # as nibabel writes "no scaling"


def _intercept_not_finite(header: Any) -> None:
    header["scl_slope"], header["scl_inter"] = 2.0, np.inf


def _zero_affine(header: Any) -> None:
    header.set_sform(np.diag([0.0, 8.0, 8.0, 1.0]), code=1)
    header["qform_code"] = 0


for _kind, _name, _write in (
    ("23", "nifti_nan_planes", _broken_nifti("not_finite", _planes_of(np.nan))),
    ("23", "nifti_infinite_planes", _broken_nifti("not_finite", _planes_of(np.inf))),
    ("23", "nifti_all_nan", _broken_nifti("not_finite", lambda s: s * np.nan)),
    ("23", "nifti_forms_shifted", _broken_nifti("conflicting_geometry", change=_shift_qform)),
    ("23", "nifti_forms_turned", _broken_nifti("conflicting_geometry", change=_turn_qform)),
    ("23", "nifti_without_codes", _broken_nifti("missing_geometry", change=_no_codes)),
    ("23", "nifti_flat_axis", _broken_nifti("missing_geometry", change=_zero_affine)),
    ("23", "nifti_intercept_not_finite", _broken_nifti("missing_rescale", change=_intercept_not_finite)),
    ("other", "nifti_mask", _broken_nifti("not_hu", lambda s: (s > -400).astype("<u1"))),
    ("other", "nifti_windowed", _broken_nifti("not_hu", lambda s: np.clip((s + 800) / 4, 0, 255).astype("<u1"))),
    ("other", "nifti_complex", _broken_nifti("unsupported_pixels", lambda s: s.astype("<c8"))),
    ("other", "nifti_impossible", _broken_nifti("impossible_hu", lambda s: s + 60000)),
    ("other", "nifti_constant", _broken_nifti("no_content", lambda s: s * 0 - 1000)),
    ("21", "nifti_of_few_slices", _broken_nifti("too_few_slices", lambda s: s[:9].copy())),
):
    member(_kind, "formats", name=_name)(_write)


@member("23", "formats", broken=False)
def nifti_nan_as_air(place: Place) -> Expect:
    """NaN outside a circle, taken as air by configuration."""
    lies = place.world.geometry
    stored = values(place, lies).astype("<f4")
    j, i = np.meshgrid(*(np.arange(n) for n in lies.shape[1:]), indexing="ij")
    outside = np.hypot(j - 12.5, i - 13.5) > 13.2
    stored[:, outside] = np.nan
    nifti(place.folder / "a.nii.gz", stored, lies)
    fill = np.broadcast_to(outside, lies.shape).copy()
    truth = Truth(lies, place.world.hu, fill=fill)
    return Expect(volumes=(truth,), notes=("(?i)finite",), config={"nan": "air"})


@member("other", "formats")
def nifti_four_axes(place: Place) -> Expect:
    lies = place.world.geometry
    stored = np.stack([values(place, lies), values(place, lies) + 50]).astype("<f4")
    image = nibabel.Nifti1Image(stored.T, _RAS @ lies.matrix)
    place.folder.mkdir(parents=True)
    nibabel.save(image, place.folder / "a.nii.gz")
    return one(place, scan(place), reasons=("multi_volume",))


@member("other", "formats")
def nifti_gz_cut_short(place: Place) -> Expect:
    lies = place.world.geometry
    nifti(place.folder / "a.nii.gz", values(place, lies).astype("<f4"), lies)
    path = place.folder / "a.nii.gz"
    path.write_bytes(path.read_bytes()[:-4000])
    return one(place, scan(place), reasons=("unreadable_pixels",))


@member("other", "formats")
def nifti_cut_short(place: Place) -> Expect:
    lies = place.world.geometry
    nifti(place.folder / "a.nii", values(place, lies).astype("<f4"), lies)
    path = place.folder / "a.nii"
    path.write_bytes(path.read_bytes()[:-4000])
    return one(place, scan(place), reasons=("unreadable_pixels",))


@member("19", "formats")
def nifti_that_claims_much(place: Place) -> Expect:
    """A header of 30000 × 30000 × 2000 voxels and no values."""
    lies = place.world.geometry
    nifti(place.folder / "a.nii", values(place, lies).astype("<f4"), lies, change=_huge)
    return one(place, scan(place), reasons=("too_large|too_costly|unreadable_pixels",))


def _huge(header: Any) -> None:
    header["dim"][1:4] = 30000, 30000, 2000


# -- NRRD and MetaImage, written by ITK


def _itk(
    name: str, *, geometry: Callable[[Place], Geometry] | None = None, whole: bool = False, compress: bool = True
) -> Write:
    def write_it(place: Place) -> Expect:
        lies = (_whole if whole else geometry or (lambda p: p.world.geometry))(place)
        itk_image(place.folder / name, values(place, lies).astype(np.int16 if whole else np.float32), lies, compress)
        return Expect(volumes=(_right(place, lies),))

    return write_it


def itk_image(path: Path, stored: Array, geometry: Geometry, compress: bool) -> None:
    """Write values (k, j, i) with ITK."""
    image = sitk.GetImageFromArray(stored)
    spacing = np.linalg.norm(geometry.matrix[:3, :3], axis=0)
    image.SetSpacing([float(v) for v in spacing])
    image.SetDirection([float(v) for v in (geometry.matrix[:3, :3] / spacing).ravel()])
    image.SetOrigin([float(v) for v in geometry.matrix[:3, 3]])
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), useCompression=compress)


for _name, _write in {
    "nrrd": _itk("a.nrrd"),
    "nrrd_raw": _itk("a.nrrd", compress=False),
    "nrrd_int16": _itk("a.nrrd", whole=True),
    "mha": _itk("a.mha"),
    "mha_raw_int16": _itk("a.mha", whole=True, compress=False),
}.items():
    member("valid", "formats", name=_name)(_write)


@member("valid", "formats")
def nrrd_of_another_space(place: Place) -> Expect:
    """The same scan written in RAS: x and y are turned when it is read."""
    lies = place.world.geometry
    matrix = _RAS @ lies.matrix
    stored = values(place, lies).astype("<f4")
    vector = lambda v: "(" + ",".join(f"{float(x):.12g}" for x in v) + ")"  # noqa: E731
    header = (
        "NRRD0004\ntype: float\ndimension: 3\nspace: right-anterior-superior\nsizes: {} {} {}\n"
        "space directions: {} {} {}\nkinds: domain domain domain\nendian: little\nencoding: gzip\nspace origin: {}\n\n"
    ).format(*lies.shape[::-1], *(vector(matrix[:3, k]) for k in range(3)), vector(matrix[:3, 3]))
    place.folder.mkdir(parents=True)
    (place.folder / "a.nrrd").write_bytes(header.encode() + gzip.compress(stored.tobytes()))
    return Expect(volumes=(_right(place, lies),))


def _broken_nrrd(reason: str, *changes: tuple[str, str], spoil: Callable[[bytes], bytes] = bytes) -> Write:
    def write_it(place: Place) -> Expect:
        lies = place.world.whole
        itk_image(place.folder / "a.nrrd", values(place, lies).astype(np.int16), lies, compress=False)
        head, _, data = (place.folder / "a.nrrd").read_bytes().partition(b"\n\n")
        text = head.decode()
        for line, new in changes:
            found = next(one for one in text.split("\n") if one.startswith(line))
            text = text.replace(found + "\n", new).replace("\n" + found, new and "\n" + new.rstrip("\n"))
        (place.folder / "a.nrrd").write_bytes(text.rstrip("\n").encode() + b"\n\n" + spoil(data))
        good = scan(place, hu=lambda w: place.world.hu(w) - 35)
        return one(place, good, reasons=(reason,))

    return write_it


for _name, _write in {
    "nrrd_without_space": _broken_nrrd(
        "missing_geometry", ("space directions", ""), ("space origin", ""), ("space:", "")
    ),
    "nrrd_cut_short": _broken_nrrd("unreadable_pixels", spoil=lambda data: data[:-2000]),
    "nrrd_of_numbers_that_are_none": _broken_nrrd(
        "bad_number|missing_geometry|unreadable_file", ("space origin", "space origin: (1,x,3)\n")
    ),
}.items():
    member("other", "formats", name=_name)(_write)


@member("other", "formats")
def nrrd_mask(place: Place) -> Expect:
    lies = place.world.geometry
    itk_image(place.folder / "seg.nrrd", (values(place, lies) > -400).astype(np.uint8), lies, compress=True)
    return one(place, scan(place), reasons=("not_hu",))


@member("other", "formats")
def mha_cut_short(place: Place) -> Expect:
    lies = place.world.whole
    itk_image(place.folder / "a.mha", values(place, lies).astype(np.int16), lies, compress=False)
    path = place.folder / "a.mha"
    path.write_bytes(path.read_bytes()[:-2000])
    return one(place, scan(place), reasons=("unreadable_pixels",))


# -- arrays of RAD-ChestCT


def _npz_geometry(place: Place, spacing_mm: float, shape: tuple[int, int, int]) -> Geometry:
    """Axes towards inferior, posterior and left from the origin: what the release means, which its files do not say."""
    first = Geometry(spacing_mm=(spacing_mm,) * 3, shape=shape, step=(0.0, 0.0, -spacing_mm))
    middle = first.matrix[:3, :3] @ ((np.asarray(shape[::-1]) - 1) / 2)
    return first.turned(centre_mm=(float(middle[0]), float(middle[1]), float(middle[2])))


def _npz(key: str, **config: Any) -> Write:
    def write_it(place: Place) -> Expect:
        spacing = config.get("npz_spacing_mm", 0.8)
        shape = (24, 26, 28) if spacing > 1 else (200, 256, 260)
        lies = _npz_geometry(place, spacing, shape)
        middle = np.asarray(lies.centre_mm)
        stored = (values(place, lies.turned(centre_mm=place.world.geometry.centre_mm))).clip(-1000, 1000)
        place.folder.mkdir(parents=True)
        np.savez_compressed(place.folder / "trn00001.npz", **{key: np.rint(stored).astype(np.int16)})
        shift = np.asarray(place.world.geometry.centre_mm) - middle
        # Whole HU of a scan that is not on whole millimetres: half a HU more.
        truth = Truth(lies, lambda w: place.world.hu(w + shift), inside=1.6, faces=5.6)
        return Expect(volumes=(truth,), notes=("(?i)0.8|8|assumed|spacing",), config=config)

    return write_it


member("valid", "formats", name="npz_ct")(_npz("ct", npz_spacing_mm=8.0))
member("valid", "formats", name="npz_volume")(_npz("volume", npz_spacing_mm=8.0))
member("valid", "formats", name="npz_of_the_release", slow=True)(_npz("ct"))


def _bad_npz(reason: str, save: Callable[[Path, Array], Any]) -> Write:
    def write_it(place: Place) -> Expect:
        place.folder.mkdir(parents=True)
        save(place.folder / "a.npz", np.rint(values(place, place.world.geometry)).astype(np.int16))
        return one(place, scan(place), reasons=(reason,), config={"npz_spacing_mm": 8.0})

    return write_it


def _npz_that_lies(path: Path, stored: Array) -> None:
    """The array's header claims 2000 times as many planes."""
    np.savez(path, ct=stored)
    path.write_bytes(path.read_bytes().replace(b"'shape': (24, 26, 28)", b"'shape': (48000,26,28)"))


def _npz_twice(path: Path, stored: Array) -> None:
    """Two members of one name."""
    import io
    import warnings
    import zipfile

    stream = io.BytesIO()
    np.save(stream, stored)
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("ct.npy", stream.getvalue())
        archive.writestr("ct.npy", stream.getvalue()[:-2] + b"\0\0")


def _cut(path: Path, stored: Array) -> None:
    np.savez(path, ct=stored)
    path.write_bytes(path.read_bytes()[:-9000])


for _name, _write in {
    "npz_of_objects": _bad_npz(
        "unsupported_pixels|unreadable_pixels", lambda p, s: np.savez(p, ct=np.array([s, {}], object))
    ),
    "npz_of_two_arrays": _bad_npz("several_arrays", lambda p, s: np.savez(p, ct=s, volume=s + 1)),
    "npz_of_two_members": _bad_npz("several_arrays|unreadable_pixels|archive_member", _npz_twice),
    "npz_of_something_else": _bad_npz("unknown_format|archive", lambda p, s: np.savez(p, weights=s)),
    "npz_that_lies": _bad_npz("unreadable_pixels|too_costly|unreadable_file", _npz_that_lies),
    "npz_cut_short": _bad_npz("unreadable_pixels|unreadable_file|archive_member|archive|unknown_format", _cut),
    "npz_flat": _bad_npz("multi_volume", lambda p, s: np.savez(p, ct=s[0])),
}.items():
    member("hostile", "formats", name=_name)(_write)
