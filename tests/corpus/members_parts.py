"""Series whose images are told apart by little, or by nothing that counts: absent numbers, blocks, copies, timing images."""

from itertools import islice

import numpy as np

from tests.corpus.classic import Scan, put, save, scan, write
from tests.corpus.member import Expect, Place, Write, member
from tests.corpus.members_identity import _later
from tests.corpus.multiframe import multiframe


def _long(place: Place, num: int = 48) -> Scan:
    """Twice as many slices as the others have, so that each half is a volume."""
    geometry = place.world.geometry
    return scan(place, geometry=geometry.turned(shape=(num, *geometry.shape[1:])))


def _one_volume(place: Place, made: Scan) -> Expect:
    save(place, made.slices)
    return Expect(volumes=(made.right(),))


def _without(tag: str, num: int) -> Write:
    def write_it(place: Place) -> Expect:
        return _one_volume(place, _long(place, num).put_at(range(0, num, 2), **{tag: ""}))

    return write_it


for _tag, _num in (("AcquisitionNumber", 24), ("AcquisitionNumber", 48), ("ConvolutionKernel", 48)):
    member("valid", "classic", name=f"every_second_of_{_num}_without_{_tag.lower()}")(_without(_tag, _num))


@member("valid", "classic")
def kernel_in_two_cases(place: Place) -> Expect:
    return _one_volume(place, _long(place).put_at(range(0, 48, 2), ConvolutionKernel="B40F"))


@member("valid", "classic")
def acquisitions_that_abut(place: Place) -> Expect:
    """Each could be a volume of its own."""
    made = _long(place).put_at(range(24), AcquisitionNumber=7)
    save(place, made.slices)
    return Expect(volumes=(made.right(),), notes=("follow each other",))


@member("valid", "classic")
def blocks_that_change_places(place: Place) -> Expect:
    return _one_volume(place, scan(place).put_at([11, *range(13, 24)], AcquisitionNumber=2))


@member("8", "classic")
def timing_images_many(place: Place) -> Expect:
    """More than a fifth of the series, each with an AcquisitionNumber of its own, at one place."""
    made = scan(place)
    timing = [
        put(_later(place, 10 + k, extra_hu=3.0 * k + 3).slices[10], AcquisitionNumber=10 + k, InstanceNumber=30 + k)
        for k in range(12)
    ]
    save(place, [*made.slices, *timing])
    return Expect(volumes=(made.right(),), reasons=("single_image*",))


@member("valid", "classic")
def copy_with_a_file_that_is_cut(place: Place) -> Expect:
    """Two copies, the last pixels of one file missing: the other copy has them."""
    made = scan(place)
    save(place, made.slices, folder="a")
    path = save(place, made.slices, folder="b")[9]
    path.write_bytes(path.read_bytes()[:-700])
    return Expect(volumes=(made.right(num_duplicates=23),), reasons=("unreadable_pixels",))


@member("valid", "classic")
def copy_with_positions_rewritten(place: Place) -> Expect:
    made = scan(place)
    save(place, made.slices, folder="a")
    step = made.geometry.matrix[:3, 2]
    moved = [
        put(
            one,
            ImagePositionPatient=[
                round(float(v), 6) for v in np.asarray(one.ImagePositionPatient, float) + 0.02 * step
            ],
        )
        for one in scan(place).slices
    ]
    save(place, moved, folder="b")
    return Expect(volumes=(made.right(num_duplicates=24),), notes=("count once",))


def _concatenation(num_files: int) -> Write:
    def write_it(place: Place) -> Expect:
        made = scan(place)
        slices = iter(made.slices)
        for number in range(1, num_files + 1):
            data = multiframe(place, list(islice(slices, 8)), number=number)
            put(
                data,
                ConcatenationUID=place.uid("concatenation"),
                InConcatenationNumber=number,
                InConcatenationTotalNumber=3,
            )
            write(place.folder / f"part{number}", data)
        return Expect(volumes=(made.right(),)) if num_files == 3 else Expect(reasons=("incomplete",))

    return write_it


member("17", "multi-frame", name="concatenation", broken=False)(_concatenation(3))
member("13", "multi-frame", name="concatenation_without_its_end")(_concatenation(2))
