"""Ingest of one series on one thread, stage by stage beside a floor: `python -m tests.bench.bench_ingest [SOURCE]`, JSON on stdout.

The floor of a stage is its work alone, on the same arrays in the same process, by the fastest library that was found (the others
are listed with their seconds). Without SOURCE it takes the CT that `PRDIT_CT_DIR` names, or else the demo's phantoms. A
synthetic series of 512 × 512 × 300 voxels comes last. Seconds are CPU time, which other work on the machine changes less.
"""

# ruff: noqa: E402
import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # before numpy is imported, here and in the processes started
    os.environ[_name] = "1"

import dataclasses
import json
import multiprocessing
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813
from numcodecs import Blosc, blosc
from scipy import ndimage, sparse

from storage.fill import Fill, has_fill
from storage.geometry import FILL_HU, pyramid
from storage.phantom import series as phantom
from storage.resample import resample_series, target_grid
from storage.sources.formats import FORMATS
from storage.sources.source import ScanRequest, SourceVolume
from storage.spline import axis_weights
from storage.volume_store import VolumeStore
from tasks.ingest.config import IngestConfig
from tasks.ingest.run import open_scan
from tasks.ingest.series import SeriesJob, ingest_series

CONFIG = IngestConfig(excluded_body_parts=())
LARGE = phantom.Acquisition(
    "large", "HFS", (1, 0, 0), (0, 1, 0), 512, 0.7, 0.8266, 1.0, -1024.0, True, "STANDARD"
)  # 300 slices


def seconds(work: Callable[[], Any], repeats: int = 3) -> tuple[float, Any]:
    """(least CPU seconds of this process, threads included; result)."""
    best, result = float("inf"), None
    for _ in range(repeats):
        result = None
        start = time.process_time()
        result = work()
        best = min(best, time.process_time() - start)
    return best, result


def whole(job: SeriesJob) -> dict[str, Any]:
    """Ingest one scan three times in a fresh process, as a worker does that has many: peak of the first, seconds of the fastest."""
    entry, cpu_s, wall_s, peak_mb = {}, [], [], 0
    for repeat in range(3):
        store = VolumeStore.create(Path(f"{job.store}-{job.scan.digest[:8]}-{repeat}"))
        again = dataclasses.replace(job, store=str(store.path))
        wall, cpu = time.perf_counter(), time.process_time()
        entry = ingest_series(again)[0]
        wall_s.append(time.perf_counter() - wall)
        cpu_s.append(time.process_time() - cpu)
        peak_mb = peak_mb or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    row = {key: entry[key] for key in ("series_uid", "num_slices", "verdict", "reason") if key in entry}
    return row | {"cpu_s": round(min(cpu_s), 2), "wall_s": round(min(wall_s), 2), "peak_mb": peak_mb}


def floors(job: SeriesJob) -> dict[str, Any]:
    """Seconds of each stage in the product and alone, and the compression, of one DICOM scan along the patient's axes."""
    files = [Path(job.source) / name for name in job.scan.files]
    request = ScanRequest(Path(job.source), job.scan.files, job.scan.scan_id, CONFIG.limits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_s, found = seconds(lambda: next(iter(FORMATS[job.scan.format].load(request))))
        decoders = {
            "pydicom": lambda: [pydicom.dcmread(p).pixel_array for p in files],
            "SimpleITK": lambda: _gdcm(files),
        }
        decode = {name: seconds(work)[0] for name, work in decoders.items()}
    resample_s, volume = seconds(lambda: resample_series(found, spacing_mm=1.0, interpolation="cubic"))
    fill_s = seconds(lambda: _fill(found.hu))[0]
    splines = _splines(found)
    levels_s, levels = seconds(lambda: pyramid(volume.hu, 3))
    means = {
        "sums of pairs": levels_s,
        "numpy mean of a view": seconds(lambda: [_mean(volume.hu, k) for k in (2, 4)], 1)[0],
    }
    means["SimpleITK BinShrink"] = seconds(lambda: _shrink(volume.hu), 1)[0]
    with tempfile.TemporaryDirectory() as folder:
        store = VolumeStore.create(Path(folder) / "store")
        names = iter("abc")
        write_s, _ = seconds(lambda: store.write(volume, volume_id=next(names), attributes={}))
        stored = sum(entry.size for entry in store.commit_record("a").files.values())
    codec_s, _ = seconds(lambda: _encode(levels))
    rows = {
        "decode": {"product": load_s, "floor": min(decode.values()), **decode},
        "fill and spline": {"product": resample_s, "floor": fill_s + min(splines.values()), "fill": fill_s, **splines},
        "pyramid and codec": {"product": write_s, "floor": min(means.values()) + codec_s, **means, "codec": codec_s},
    }
    raw = sum(level.nbytes for level in levels)
    return {
        "stages": {name: {key: round(value, 3) for key, value in row.items()} for name, row in rows.items()},
        "floor_s": round(sum(row["floor"] for row in rows.values()), 2),
        "has_fill": has_fill(found.hu),
        "compression": round(raw / stored, 2),
    }


def _gdcm(files: list[Path]) -> None:
    for path in files:
        reader = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(path))
        sitk.GetArrayViewFromImage(reader.Execute())


def _fill(hu: np.ndarray) -> None:
    if has_fill(hu):
        fill = Fill(hu)
        for index in range(len(hu)):
            fill.plane(index)


def _splines(scan: SourceVolume) -> dict[str, float]:
    """CPU seconds of a cubic spline to the 1 mm grid by several libraries, fill taken as air."""
    hu = np.where(scan.hu == FILL_HU, -1024, scan.hu).astype(scan.hu.dtype)
    shape, _ = target_grid(scan, 1.0)
    steps = [1.0 / spacing for spacing in scan.spacing_mm[::-1]]
    plain = SourceVolume(hu, scan.spacing_mm, scan.origin_mm, np.eye(3), {}, "")
    own = seconds(lambda: resample_series(plain, spacing_mm=1.0, interpolation="cubic"))[0]
    samples = [np.arange(n, dtype=float) for n in hu.shape]
    at = [(np.arange(m) - (m - 1) / 2) * step + (n - 1) / 2 for m, n, step in zip(shape, hu.shape, steps, strict=True)]
    matrices = [axis_weights(s, p, "cubic").astype(np.float32) for s, p in zip(samples, at, strict=True)]
    offset = [p[0] for p in at]
    found = {
        "banded products": own,
        "scipy.sparse": seconds(lambda: _by_csr(hu, matrices), 1)[0],
        "dense products": seconds(lambda: _by_dense(hu, matrices), 1)[0],
        "scipy.ndimage": seconds(
            lambda: ndimage.affine_transform(hu, steps, offset, shape, np.float32, 3, mode="mirror"), 1
        )[0],
    }
    image = sitk.GetImageFromArray(hu.astype(np.float32))
    image.SetSpacing(scan.spacing_mm)
    found["SimpleITK"] = seconds(lambda: _itk(image, shape), 1)[0]
    return found


def _by_csr(hu: np.ndarray, matrices: list[np.ndarray]) -> np.ndarray:
    z, y, x = (sparse.csr_matrix(np.where(np.abs(m) > 1e-6, m, 0)) for m in matrices)
    planes = np.stack([(x @ (y @ plane.astype(np.float32)).T).T for plane in hu])
    return np.rint(z @ planes.reshape(len(hu), -1)).astype(np.int16)


def _by_dense(hu: np.ndarray, matrices: list[np.ndarray]) -> np.ndarray:
    z, y, x = matrices
    planes = np.stack([y @ plane.astype(np.float32) @ x.T for plane in hu])
    return np.rint(z @ planes.reshape(len(hu), -1)).astype(np.int16)


def _itk(image: sitk.Image, shape: tuple[int, ...]) -> None:
    resampler = sitk.ResampleImageFilter()
    resampler.SetNumberOfThreads(1)
    resampler.SetInterpolator(sitk.sitkBSpline3)
    resampler.SetSize(shape[::-1])
    resampler.Execute(image)


def _mean(hu: np.ndarray, factor: int) -> np.ndarray:
    d, h, w = (n // factor for n in hu.shape)
    whole_blocks = hu[: d * factor, : h * factor, : w * factor]
    return whole_blocks.reshape(d, factor, h, factor, w, factor).mean(axis=(1, 3, 5), dtype=np.float32)


def _shrink(hu: np.ndarray) -> None:
    image = sitk.GetImageFromArray(hu)
    for factor in (2, 4):
        shrink = sitk.BinShrinkImageFilter()
        shrink.SetNumberOfThreads(1)
        shrink.SetShrinkFactors([factor] * 3)
        shrink.Execute(image)


def _encode(levels: list[np.ndarray]) -> int:
    """Bytes of the store's codec over its chunks."""
    blosc.set_nthreads(1)
    codec = Blosc(cname="zstd", clevel=3, shuffle=Blosc.BITSHUFFLE)
    return sum(len(codec.encode(chunk)) for level in levels for chunk in _chunks(level))


def _chunks(level: np.ndarray, edge: int = 64) -> list[np.ndarray]:
    padded = np.pad(level, [(0, -n % min(edge, n)) for n in level.shape], constant_values=-1024)
    corners = np.ndindex(*[-(-n // edge) for n in level.shape])
    return [np.ascontiguousarray(padded[tuple(slice(edge * c, edge * (c + 1)) for c in corner)]) for corner in corners]


CODECS = {
    "zstd 1, bitshuffle": Blosc("zstd", 1, Blosc.BITSHUFFLE),
    "zstd 3, bitshuffle (the store's)": Blosc("zstd", 3, Blosc.BITSHUFFLE),
    "zstd 5, bitshuffle": Blosc("zstd", 5, Blosc.BITSHUFFLE),
    "zstd 9, bitshuffle": Blosc("zstd", 9, Blosc.BITSHUFFLE),
    "zstd 3, shuffle": Blosc("zstd", 3, Blosc.SHUFFLE),
    "zstd 3, delta along x, bitshuffle": Blosc("zstd", 3, Blosc.BITSHUFFLE),
    "zstd 3, delta along x, shuffle": Blosc("zstd", 3, Blosc.SHUFFLE),
    "lz4 5, bitshuffle": Blosc("lz4", 5, Blosc.BITSHUFFLE),
    "lz4hc 9, bitshuffle": Blosc("lz4hc", 9, Blosc.BITSHUFFLE),
    "zlib 6, bitshuffle": Blosc("zlib", 6, Blosc.BITSHUFFLE),
}


def codecs(job: SeriesJob) -> list[dict[str, Any]]:
    """Compression of level 0 and MB/s on one thread by codec."""
    request = ScanRequest(Path(job.source), job.scan.files, job.scan.scan_id, CONFIG.limits)
    found = next(iter(FORMATS[job.scan.format].load(request)))
    hu = resample_series(found, spacing_mm=1.0, interpolation="cubic").hu
    blosc.set_nthreads(1)
    chunks, rows = _chunks(hu), []
    for name, codec in CODECS.items():
        delta = "delta" in name
        write_s, encoded = seconds(
            lambda c=codec, d=delta: [c.encode(_delta(chunk) if d else chunk) for chunk in chunks], 1
        )
        read_s, _ = seconds(lambda c=codec, e=encoded: [c.decode(chunk) for chunk in e], 1)
        size, megabytes = sum(len(chunk) for chunk in encoded), hu.nbytes / 1e6
        row = {"codec": name, "compression": round(hu.nbytes / size, 2)}
        rows.append(row | {"write_mb_s": round(megabytes / write_s), "read_mb_s": round(megabytes / read_s)})
    return rows


def _delta(chunk: np.ndarray) -> np.ndarray:
    return np.diff(chunk, axis=2, prepend=np.zeros_like(chunk[:, :, :1]))


def _jobs(source: Path, folder: Path) -> list[SeriesJob]:
    store = VolumeStore.create(folder)
    with open_scan(source, store.path, CONFIG) as (scan, _):
        return [SeriesJob(str(source), str(store.path), one, CONFIG) for one in scan.scans()]


def _apart(work: Callable[[SeriesJob], Any], job: SeriesJob) -> Any:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, (job,))


def workers(job: SeriesJob, scratch: Path) -> dict[str, float]:
    """Wall seconds of four ingests of one scan, each into a store of its own, by one and by two processes."""
    found = {}
    for num_workers in (1, 2):
        stores = [VolumeStore.create(scratch / f"workers-{num_workers}-{k}").path for k in range(5)]
        jobs = [SeriesJob(job.source, str(path), job.scan, CONFIG) for path in stores]
        with multiprocessing.get_context("spawn").Pool(num_workers) as pool:
            pool.map(time.sleep, [0.5] * num_workers, chunksize=1)  # until every process has imported everything
            pool.map(ingest_series, jobs[:1])
            start = time.perf_counter()
            pool.map(ingest_series, jobs[1:], chunksize=1)
            found[f"{num_workers} worker(s)"] = round(time.perf_counter() - start, 2)
    return found | {"speed_up": round(found["1 worker(s)"] / found["2 worker(s)"], 2)}


def main() -> None:
    """Measure every CT series of a source, one process each, then a large one."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if len(sys.argv) > 1:
            source = Path(sys.argv[1])
        elif "PRDIT_CT_DIR" in os.environ:
            source = Path(os.environ["PRDIT_CT_DIR"]) / "dicom"
        else:
            phantom.write_demo_data(scratch / "phantoms", num_patients=4)
            source = scratch / "phantoms"
        jobs = _jobs(source, scratch / "store")
        phantom._write_series(scratch / "large", 0, 7, LARGE, broken=False)
        large = _jobs(scratch / "large", scratch / "large-store")
        rows, stages = [], {}
        for job in [*jobs, *large]:
            row = _apart(whole, job)
            if row["verdict"] == "committed":
                row |= _apart(floors, job)
                stages[row["series_uid"]] = row.pop("stages")
                row["over_floor"] = round(row["cpu_s"] / row["floor_s"], 2)
            rows.append(row)
        longest = max(jobs, key=lambda job: len(job.scan.files))
        result = {"title": "Ingest of one series, one thread", "rows": rows, "stages": stages}
        result |= {"workers": workers(longest, scratch), "codecs": _apart(codecs, longest)}
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
