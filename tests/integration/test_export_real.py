"""Exports of a real scan come back as they were; real receivers, dcmtk's and our own listener, get every image."""

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK

from storage.errors import NodeError
from storage.snapshots import load_snapshot, newest
from storage.volume_store import VolumeStore
from tasks.export.folder import export
from tasks.export.selection import select
from tasks.export.send import Node, send
from tasks.export.sendable import of_folder, of_selection
from tasks.ingest.config import IngestConfig
from tasks.ingest.run import ingest
from tasks.run.runners import Local
from tests.dcmtk import DEADLINE_S, listening, skip_without_dcmtk
from tests.exported import SHAPE, dciodvfy, sample_store, thorax
from tests.ports import free_ports
from tests.processes import wait_for

NAME = "Lung_Dx-A0002_B40f"


def silent(done: int, total: int) -> None:
    """Progress that nobody looks at."""


@pytest.fixture(scope="module")
def store(real_ct: Path, tmp_path_factory: pytest.TempPathFactory) -> VolumeStore:
    folder = tmp_path_factory.mktemp("exported")
    ingest(real_ct / "dicom" / NAME, folder / "store", IngestConfig(spacing_mm=1.5), runner=Local(1))
    return VolumeStore.open(folder / "store")


@pytest.mark.slow
@pytest.mark.parametrize("format", ["dicom", "nifti"])
def test_a_real_scan_comes_back_through_an_ingest(store: VolumeStore, tmp_path: Path, format: str) -> None:
    export(select(store, everything=True), format, tmp_path / "out", silent)
    report = ingest(tmp_path / "out", tmp_path / "back", IngestConfig(spacing_mm=1.5), runner=Local(1))
    (committed,) = report.committed
    (volume_id,) = store.volume_ids()
    sent, back = store.read_level(volume_id), VolumeStore.open(tmp_path / "back").read_level(str(committed.volume_id))
    assert back.hu.shape == sent.hu.shape
    np.testing.assert_allclose(back.spacing_mm, sent.spacing_mm, atol=1e-4)
    np.testing.assert_allclose(back.origin_mm, sent.origin_mm, atol=1e-4)
    assert np.abs(back.hu.astype(int) - sent.hu).max() <= 1
    if format == "dicom":
        before = load_snapshot(newest(store)).volumes[volume_id].attributes
        after = load_snapshot(newest(VolumeStore.open(tmp_path / "back"))).volumes[str(committed.volume_id)].attributes
        of_the_grid = {"SliceThickness", "ReconstructionDiameter", "StudyInstanceUID", "SeriesInstanceUID"}
        for name in before.keys() - of_the_grid:
            assert after.get(name) == before[name], name


@pytest.mark.slow
def test_independent_readers_see_a_real_scan_at_its_place(store: VolumeStore, tmp_path: Path) -> None:
    (volume_id,) = store.volume_ids()
    volume = store.read_level(volume_id)
    for format in ("dicom", "nifti"):
        export(select(store, everything=True), format, tmp_path / format, silent)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "dicom" / volume_id)))
    for image in (reader.Execute(), SimpleITK.ReadImage(str(tmp_path / "nifti" / f"{volume_id}.nii.gz"))):
        np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image), volume.hu)
        np.testing.assert_allclose(image.GetOrigin(), volume.origin_mm, atol=1e-4)
        np.testing.assert_allclose(image.GetSpacing(), volume.spacing_mm, atol=1e-4)
    nifti = nibabel.load(tmp_path / "nifti" / f"{volume_id}.nii.gz")
    z, y, x = (n // 3 for n in volume.hu.shape)
    left, posterior, superior = volume.world_mm(np.array([z, y, x], dtype=float))
    place = np.linalg.solve(nifti.affine, [-left, -posterior, superior, 1.0])[:3]
    np.testing.assert_allclose(place, [x, y, z], atol=1e-3)
    assert int(np.asarray(nifti.dataobj)[x, y, z]) == int(volume.hu[z, y, x])


@pytest.mark.slow
def test_no_image_of_a_real_scan_has_an_error_for_dciodvfy(store: VolumeStore, tmp_path: Path) -> None:
    export(select(store, everything=True), "dicom", tmp_path / "out", silent)
    images = sorted((tmp_path / "out" / store.volume_ids()[0]).iterdir())
    for image in (images[0], images[len(images) // 2], images[-1]):
        assert dciodvfy(image) == []


class Storescp:
    """dcmtk's receiver, with the files that it wrote."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, port = folder, free_ports()
        folder.mkdir()
        self.node = Node("STORESCP", "127.0.0.1", port, timeout_s=30.0)
        command = ["storescp", *options, "-aet", "STORESCP", "-od", str(folder), str(port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        echo = ["echoscu", "-aec", "STORESCP", "127.0.0.1", str(port)]
        wait_for(lambda: subprocess.run(echo, capture_output=True, check=False).returncode == 0, DEADLINE_S)

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if path.is_file())

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(DEADLINE_S)


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Storescp]:
    skip_without_dcmtk()
    if shutil.which("storescp") is None:
        pytest.skip("not on PATH: storescp (Debian package dcmtk)")
    started = Storescp(tmp_path / "received")
    try:
        yield started
    finally:
        started.stop()


def test_storescp_has_every_image_and_its_bits(receiver: Storescp, tmp_path: Path) -> None:
    chosen = select(sample_store(tmp_path / "samples.zarr"), everything=True)
    export(chosen, "dicom", tmp_path / "out", silent)
    for sendables in (of_selection(chosen), of_folder(tmp_path / "out")):
        assert send(sendables, receiver.node, silent).num_images == SHAPE[0]
        images = sorted((pydicom.dcmread(path) for path in receiver.files()), key=lambda data: int(data.InstanceNumber))
        np.testing.assert_array_equal(np.stack([data.pixel_array for data in images]), thorax().hu)
        assert {data.SyntheticData for data in images} == {"YES"}


def test_our_own_listener_has_every_image_and_an_ingest_refuses_them(tmp_path: Path) -> None:
    skip_without_dcmtk()
    chosen = select(sample_store(tmp_path / "samples.zarr"), everything=True)
    with listening(tmp_path / "site") as listener:
        node = Node("PRDIT", "127.0.0.1", listener.port, calling="SCANNER")
        assert send(of_selection(chosen), node, silent).num_images == SHAPE[0]
        send(of_selection(chosen), node, silent)
        assert len(listener.stored()) == SHAPE[0]  # the second time changed nothing
        assert listener.process is not None
        listener.kill()
        with pytest.raises(NodeError, match="cannot be reached"):
            send(of_selection(chosen), node, silent)
    config = IngestConfig(min_slices=8, min_length_mm=0.0, min_width_mm=0.0, spacing_mm=4.0)
    report = ingest(tmp_path / "site" / ".prdit" / "inbox", tmp_path / "store", config, runner=Local(1))
    assert report.num_excluded == {"synthetic": 1}


def test_a_node_that_is_killed_in_the_middle(receiver: Storescp, tmp_path: Path) -> None:
    chosen = select(sample_store(tmp_path / "samples.zarr"), everything=True)

    def kill_at_ten(done: int, total: int) -> None:
        if done == 10:
            receiver.process.kill()
            receiver.process.wait()
            time.sleep(0.2)

    with pytest.raises(NodeError, match=r"cut the connection.*it has 1\d of 24 images, 0 volumes whole"):
        send(of_selection(chosen), receiver.node, kill_at_ten)
