"""`prdit fetch idc` with the archive's real index and a real scan, which a server of this machine has in its place."""

import json
import uuid
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from tests.fake_idc import empty_archive

PREFIX = "37cf5cd8-d103-4cd0-a446-960bc0ed92a3"  # of LIDC-IDRI-0001 in idc-open-data


def test_the_first_patient_of_lidc_is_what_the_index_says(real_ct: Path, tmp_path: Path) -> None:
    """133 images of 70 018 838 bytes: the index, the selection and the checks agree with the real files."""
    pytest.importorskip("idc_index_data", reason="the extra idc is not installed")
    folder = tmp_path / "lidc"
    originals = sorted(path.read_bytes() for path in (real_ct / "dicom" / "LIDC-IDRI-0001").glob("*.dcm"))
    with empty_archive() as archive:
        for image in originals:
            archive.put(f"{PREFIX}/{uuid.uuid4()}.dcm", image)
        where = ["--to", str(folder), "--endpoint", archive.endpoint, "--json"]
        shown = CliRunner().invoke(app, ["fetch", "idc", "--collection", "lidc_idri", "--patients", "1", *where])
    assert shown.exit_code == 0, shown.output
    value = json.loads(shown.stdout.splitlines()[-1])
    expected = {"num_downloaded": 133, "num_bytes": 70_018_838, "num_there": 0, "num_size_only": 0}
    assert value["downloaded"] == expected
    assert sorted(path.read_bytes() for path in (folder / "dicom").rglob("*.dcm")) == originals
    text = (folder / "ATTRIBUTION.md").read_text()
    assert "| CC BY 3.0 | 1 | https://doi.org/10.7937/k9/tcia.2015.lo9ql9sx |" in text
    assert "- Armato III, Samuel G." in text
