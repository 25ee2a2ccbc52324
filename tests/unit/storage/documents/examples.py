"""One whole example of every document, and the ways in which a file can be wrong."""

import json
from collections.abc import Callable
from typing import Any

from storage.documents.average_snapshots import AverageSnapshot, AverageSnapshots
from storage.documents.backup import BackupDocument, BackupFile
from storage.documents.benchmark import BenchmarkDocument, Line, PlannedTraining, SeedResult
from storage.documents.checkpoint import (
    Average,
    Category,
    Checkpoint,
    CoarseMask,
    Gates,
    Imported,
    Intensity,
    Labels,
    Number,
    View,
)
from storage.documents.comparison import ComparedFigure, ComparedRun, Comparison, Difference, Pairs, Setting
from storage.documents.document import Document
from storage.documents.encoded import EncodedOrigin
from storage.documents.export import Export, ExportedVolume
from storage.documents.fetch_plan import FetchPlan, PlannedSeries, Selection
from storage.documents.held_out import HeldOutLosses
from storage.documents.lease import Lease
from storage.documents.measurement import MeasuredGrid, Measurement, Simulated
from storage.documents.patient_key_id import PatientKeyId
from storage.documents.pending import Pending
from storage.documents.promotion import Decision
from storage.documents.provenance import Provenance
from storage.documents.reconstruction import Accuracy, Likeness, Reconstruction, Truth
from storage.documents.reference import Reference
from storage.documents.report import Features, FigureRecord, Report
from storage.documents.retraining import Retraining
from storage.documents.run_record import RunDocument, StageRecord
from storage.documents.samples import Excluded, GivenMask, Guided, Redraw, SamplerSettings, Samples, Verdict
from storage.documents.snapshot import HistoryEntry, Roles, Snapshot, SnapshotVolume
from storage.documents.split import Split
from storage.documents.synthetic import Synthetic
from storage.documents.tombstone import Tombstone
from storage.documents.training_state import GROUPS, BestValidation, TrainingPosition, TrainingState
from storage.documents.upkeep import Damage, Place, Removal, Upkeep
from storage.documents.verdicts import Entry, IngestReport, SourceVerdicts
from storage.documents.volume import Grid, ScanFacts, StoredArray, StoredFile, StoreRoot, VolumeRecord
from storage.errors import DamagedArtifactError, MissingArtifactError, StorageError, VersionError
from storage.refs import Ref

REF = Ref(kind="snapshot", uri="/data/store", digest="sha256:" + "0" * 64)
_INTENSITY = Intensity(lower_hu=-1000.0, upper_hu=1000.0, model_lower=-1.0, model_upper=1.0, mapping="window")
_VIEW = View(size=64, edge=256, centre=(120, 128, 128))
_SAMPLER = SamplerSettings(
    name="predictor-corrector",
    schedule="even",
    num_steps=50,
    evaluations=50,
    predictor_step=2,
    parametrization="velocity",
    output="image",
    label=None,
    guidance_scale=1.0,
    process={"name": "cosine", "noise_std": 0.5, "num_steps": 1000},
    seed=42,
    weights="ema",
    precision="fp32",
)
_SKIPPED = [Entry(path="notes.txt", reason="not_dicom", message="notes.txt is not a DICOM file; nothing to do.")]

POSITION = TrainingPosition(
    step=100,
    steps=400,
    updates=99,
    first_loss=1.0,
    recent=(0.5, 0.25),
    best=BestValidation(step=50, loss=0.1, raw={"loss": 0.2}, ema={"loss": 0.1}, files={"ema": "4" * 64}),
    snapshots=(50,),
    window=({"loss": 0.5, "grad_norm": None}, {"loss": 0.25}),
    rewinds=1,
    skipped=1,
    skipped_in_a_row={"all": 0},
    settings="8" * 64,
    snapshot="sha256:7",
    world=2,
    seconds=12.5,
)

BENCHMARK = BenchmarkDocument(
    title="Two families",
    name="custom",
    digest="sha256:5",
    budget="4 optimiser steps",
    seeds=(1, 2),
    num_volumes=4,
    snapshot=REF,
    split=REF,
    n_real=8,
    n_train=6,
    volume_size=16,
    voxel_mm=16.0,
    view_edge=64,
    features=None,
    floor={"fid": 0.5, "kid": None},
    floor_note="One half against the other.",
    lines=(
        Line(
            row="a",
            title="A & B",
            sampler="few",
            sampling="euler, 2 evaluations",
            trainings=(
                PlannedTraining(
                    name="local",
                    family="local",
                    title="local denoiser",
                    process="cosine",
                    parameters=1000,
                    trainable=900,
                    flops_per_volume=2_000_000_000,
                    memory_bytes={"cpu": 2**30, "cuda": 2**31},
                    batch_size=2,
                ),
            ),
            results=tuple(
                SeedResult(
                    seed=seed,
                    figures={"fid": fid, "kid": None, "parameters": 1000.0, "training_steps": 4.0},
                    steps={"local": 4},
                    report=REF,
                    samples=REF,
                    n_generated=4,
                )
                for seed, fid in ((1, 1.0), (2, 3.0))
            ),
            failed={},
            deviations=("half the width",),
            paper="HA-GAN",
        ),
    ),
    devices=("cpu, 2 threads",),
    versions={"prdit": "0.1.0"},
    created="2026-11-30T00:00:00+00:00",
)

_DIGEST = "sha256:" + "1" * 64
EXAMPLES: dict[str, Document] = {
    "benchmark": BENCHMARK,
    "back-up": BackupDocument(
        created="2026-11-29T00:00:00+00:00",
        prdit="0.1.0",
        databases="sqlite",
        revisions={"prefect": "a1", "mlflow": None},
        files={"settings/site.yaml": BackupFile(sha256="2" * 64, target=".prdit/site.yaml", group="settings")},
    ),
    "encoded volumes": EncodedOrigin(
        encoder=_DIGEST,
        weights="ema",
        snapshot=_DIGEST,
        view=_VIEW,
        intensity=_INTENSITY,
        axes="zyx",
        device="cuda",
    ),
    "held-out losses": HeldOutLosses(checkpoint=_DIGEST, weights="ema", reference=1, losses={"v1": 0.5}),
    "decision": Decision(
        action="held",
        reason="not better beyond noise",
        champion=1,
        champion_before=1,
        challenger=2,
        checkpoint=_DIGEST,
        figures={"reference": 1},
        by="policy default",
        created="2026-11-29T00:00:00+00:00",
    ),
    "upkeep": Upkeep(
        created="2026-11-29T00:00:00+00:00",
        verified=4,
        verified_at="2026-11-29T00:00:00+00:00",
        damage=(Damage(kind="volume", name="v1", message="a byte differs"),),
        removed=(Removal(what="stage", count=2, size_bytes=9),),
        places=(Place(name="store", size_bytes=10),),
        free_bytes=100,
        min_free_bytes=5,
    ),
    "reference": Reference(
        volumes={"v1": "p1"},
        snapshot=_DIGEST,
        num_noises=4,
        seed=1,
        why="there was none",
        created="2026-11-29T00:00:00+00:00",
    ),
    "retraining": Retraining(
        snapshot=_DIGEST,
        num_volumes=4,
        num_patients=3,
        reason="2 new volumes",
        policy="default",
        settings=_DIGEST,
        champion=None,
        initial="",
        begun="2026-11-29T00:00:00+00:00",
    ),
    "provenance": Provenance(
        kind="split",
        digest="sha256:" + "1" * 64,
        stage="split",
        recipe=2,
        inputs={"snapshot": REF},
        config={"seed": 42},
        files={"split.json": "2" * 64},
        created="2026-01-01T00:00:00+00:00",
        code_version="0.1+abc",
        mlflow_run_id="",
        seconds=1.5,
    ),
    "checkpoint": Checkpoint(
        family="local",
        model={"volume_size": 64},
        process={"name": "cosine", "noise_std": 0.5, "num_steps": 1000},
        intensity=_INTENSITY,
        view=View(size=64, edge=256, centre=None, more_edges=(320, 384)),
        axes="zyx",
        spacing_mm=1.0,
        step=100,
        seed=42,
        gates=Gates(first_loss=1.0, last_loss=0.1, val_loss=0.2, val_loss_ema=None, val_loss_ema_parts={"t050": 0.1}),
        labels=Labels(column="sex", values=("F", "M")),
        conditions=(
            Number(name="age_years", mean=61.5, std=9.25),
            Category(name="ConvolutionKernel", values=("B", "L")),
        ),
        mask=CoarseMask(channels=("body", "lungs"), cell=2),
        average=Average(sigma_rel=0.1, updates=None, shares={"a.safetensors": 1.0}),
        imported=Imported(
            variant="prdit",
            model_name="PRDiT-B/12/4",
            source_sha256="3" * 64,
            substituted="",
            epoch=3,
            dataset="lidc",
            per_scan_intensity=True,
        ),
    ),
    "training state": TrainingState.of(POSITION, dict.fromkeys(sorted(GROUPS), "5" * 64)),
    "lease": Lease(
        host="gpu-7", machine="0" * 8, pid=11, started=1_700_000_000, since="2026-01-01T00:00:00+00:00", released=False
    ),
    "averages": AverageSnapshots(snapshots=(AverageSnapshot(file="a.safetensors", updates=50, sigma_rel=0.05),)),
    "split": Split(roles={"train": ["b", "a"], "val": ["c"]}, patients={"train": ["p"], "val": ["q"]}, notes=["small"]),
    "samples": Samples(
        store="samples.zarr",
        num_asked=2,
        volume_ids=["generated-00000"],
        seeds=[7],
        sampler=_SAMPLER.model_copy(update={"conditions": {"age_years": 90.0, "ConvolutionKernel": "B"}}),
        clipped_fraction=[0.0],
        outside_window_fraction=[0.01],
        verdicts=[Verdict(plausible=False, failed=["lung_hu"], figures={"lung_hu": -700.0, "outside_hu": None})],
        redraw=Redraw(most=1, judged=True, num_redrawn=1, tries=[2]),
        excluded=[Excluded(index=1, seed=8, tries=2, reason="not_finite", sentence="9 of 9 voxels are not finite")],
        view=_VIEW,
        intensity=_INTENSITY,
        spacing_mm=4.0,
        warnings=["sample.conditions.age_years is 90; the training's values lie in about 33 to 89"],
    ),
    "export": Export(
        format="dicom",
        level=0,
        prdit="0.1.0",
        snapshot="sha256:" + "2" * 64,
        generated=None,
        volumes=(
            ExportedVolume(
                volume_id="a",
                path="a",
                num_planes=300,
                digest="sha256:" + "3" * 64,
                synthetic=False,
            ),
        ),
    ),
    "synthetic": Synthetic(
        checkpoint="sha256:8",
        family="global",
        step=100,
        sampler=_SAMPLER.model_copy(update={"mask": GivenMask(format="labels", files_digest=_DIGEST)}),
        guided=Guided(measurement=_DIGEST, guide="projection", strength=1.0, settings={"data_std": 0.5}),
    ),
    "measurement": Measurement(
        operator={"name": "downsampling", "factor": 2, "noise_std": 5.0},
        unit="HU",
        shape=(4, 4, 4),
        sha256="6" * 64,
        noise_std=5.0,
        saturated_fraction=0.01,
        grid=MeasuredGrid(shape=(8, 8, 8), spacing_mm=(4.0, 4.0, 4.0), origin_mm=(-14.0, -14.0, 0.0)),
        simulated=Simulated(snapshot=_DIGEST, volume_id="v1", seed=0),
    ),
    "reconstruction": Reconstruction(
        measurement=_DIGEST,
        checkpoint="sha256:8",
        num_samples=2,
        level=0.9,
        noise_std=5.0,
        unit="HU",
        residuals=[5.1, 4.9],
        truth=Truth(
            volume_id="v1",
            role="held_out",
            accuracy={"mean": Accuracy(psnr_db=30.0, ssim=0.9, error_hu={"all": 40.0, "bone": None}, residual=4.0)},
            coverage={"0.9": 0.85},
            likeness=Likeness(
                to_training=[200.0, 210.0], to_truth=[60.0, 61.0], truth_to_training=190.0, num_training=6
            ),
        ),
        warnings=["few samples"],
    ),
    "report": Report(
        figures={
            "fid": FigureRecord(
                value=1.5, n_real=9, n_generated=8, unit="", features="sha256:6", interval={"low": 1.0}, note=""
            )
        },
        references={},
        blind={},
        warnings=["few volumes"],
        details={"hu": {}},
        features=Features(
            extractor="random",
            title="ResNet",
            digest="sha256:6",
            random=True,
            width=2048,
            input_size=None,
            statement="for runs only",
        ),
        protocol="all volumes",
        intensity=_INTENSITY,
        volume_size=64,
        voxel_mm=4.0,
        sampler=_SAMPLER,
        clipped_fraction_mean=0.0,
        outside_window_fraction_mean=0.01,
        notes=[],
        n_real=9,
        n_held_out=2,
        n_generated=8,
    ),
    "comparison": Comparison(
        runs=[
            ComparedRun(
                label="A",
                name="20260101T000000.000000Z",
                created="2026-01-01T00:00:00+00:00",
                report="sha256:1",
                samples="sha256:2",
                checkpoint=None,
                mlflow_run_id="",
                n_generated=8,
                n_real=9,
                warnings=["few volumes"],
            )
        ],
        notes=["few volumes"],
        figures=[
            ComparedFigure(
                name="fid",
                title="FID",
                better="lower",
                values={
                    "A": FigureRecord(
                        value=1.5, n_real=9, n_generated=8, unit="", features=None, interval=None, note=""
                    )
                },
                floor=None,
                blind={"A": "blind"},
                differences=[Difference(label="B", value=-0.5, interval={"low": -1.0}, better=True, note="")],
            )
        ],
        settings=[Setting(stage="sample", key="seed", values={"A": 1, "B": None})],
        pairs=[Pairs(label="B", generated=[("g0", "g0")], by="seed", real=["v0"], held_out=[])],
    ),
    "ingest report": IngestReport(
        snapshot="sha256:7",
        store="/data/store",
        committed=[
            Entry(series_uid="1.2.3", volume_id="v0", num_slices=90, cut={"body": 0.0, "lung": 0.0}, seconds=1.0)
        ],
        skipped=_SKIPPED,
        notes=["one note"],
    ),
    "source verdicts": SourceVerdicts(source_digest="sha256:8", recipe=3, config={"min_slices": 16}, skipped=_SKIPPED),
    "pending": Pending(stage="split", inputs={"store": REF}),
    "run": RunDocument(
        config_digest="sha256:9",
        prefect_flow_run_id=None,
        mlflow_uri="sqlite:///mlflow.db",
        mlflow_run_id="",
        mlflow_experiment_id="1",
        stages={
            "split": StageRecord(
                ref=REF,
                cached=False,
                seconds=1.0,
                mlflow_run_id="",
                figures={"split/n": 3.0},
                directory="/data/split/1",
            )
        },
        seconds=1.0,
        gates={"local_loss_ratio": None},
        report="/data/report.html",
        metrics=None,
        error=None,
    ),
    "store root": StoreRoot(spacing_mm=1.0, num_levels=3, interpolation="cubic"),
    "volume": VolumeRecord(
        volume_id="v",
        folder="v-01234567",
        shape=(40, 64, 64),
        spacing_mm=(1.0, 1.0, 1.0),
        origin_mm=(-31.5, -31.5, 0.0),
        arrays={"0": StoredArray(shape=(40, 64, 64), sha256="a")},
        files={"0/zarr.json": StoredFile(size=9, sha256="b")},
        attributes={"KVP": 120.0},
        scan=ScanFacts(scan="1.2.3", files_digest="c", recipe=2, num_slices=40, spacing_mm=(0.7, 0.7, 1.25)),
    ),
    "snapshot": Snapshot(
        grid=Grid(spacing_mm=1.0, num_levels=3, interpolation="cubic"),
        volumes={
            "v": SnapshotVolume(patient_key="p", patient_known=True, shape=(40, 64, 64), labels={"nodule": "yes"})
        },
    ),
    "tombstone": Tombstone(
        patient_key="a" * 32,
        scan_keys=("b" * 32,),
        volume_ids=("v1",),
        pixels=("c" * 64,),
        created="2026-01-01T00:00:00+00:00",
        scans=("1.2.3",),
    ),
    "redacted provenance": Provenance(
        kind="report",
        digest="sha256:" + "1" * 64,
        stage="evaluate",
        recipe=2,
        inputs={},
        config={},
        files={"report.html": "2" * 64, "figures/real-0.png": "3" * 64},
        created="2026-01-01T00:00:00+00:00",
        forgotten="a patient was forgotten on 2026-01-02",
        redacted={"report.html": "4" * 64, "figures/real-0.png": ""},
    ),
    "history": HistoryEntry(
        snapshot=REF.digest, change="ingest: 1 new", created="2026-01-01T00:00:00+00:00", num_volumes=1, num_patients=1
    ),
    "fetch plan": FetchPlan(
        index="idc-index-data 25.0.5",
        selection=Selection(collection="lidc_idri", patients=1),
        series=(
            PlannedSeries(
                patient_id="LIDC-IDRI-0001",
                series_uid="1.2.3",
                bucket="idc-open-data",
                prefix="37cf5cd8-d103-4cd0-a446-960bc0ed92a3",
                num_images=133,
                num_bytes=70018838,
                licence="CC BY 3.0",
                doi="10.7937/k9/tcia.2015.lo9ql9sx",
            ),
        ),
        citations={"10.7937/k9/tcia.2015.lo9ql9sx": "Armato et al. (2015)"},
    ),
    "roles": Roles(roles={"p": "train"}),
    "patient key id": PatientKeyId(key_id="0123456789abcdef"),
}


def _without_a_required_key(content: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name not in REQUIRED}


REQUIRED = {
    "operator",
    "checkpoint",
    "free_bytes",
    "prdit",
    "pid",
    "patient_key",
    "key_id",
    "volumes",
    "spacing_mm",
    "snapshot",
    "digest",
    "family",
    "files",
    "snapshots",
    "series",
    "roles",
    "seeds",
    "figures",
    "store",
    "recipe",
    "stages",
    "stage",
}

Fault = tuple[Callable[[bytes], bytes | None], type[StorageError]]


def _changed(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps(change(json.loads(content))).encode()


FAULTS: dict[str, Fault] = {
    "missing": (lambda content: None, MissingArtifactError),
    "empty": (lambda content: b"", DamagedArtifactError),
    "truncated": (lambda content: content[: len(content) // 2], DamagedArtifactError),
    "object": (lambda content: b"{}", DamagedArtifactError),
    "list": (lambda content: b"[]", DamagedArtifactError),
    "null": (lambda content: b"null", DamagedArtifactError),
    "number": (lambda content: b"3", DamagedArtifactError),
    "not utf-8": (lambda content: content[:-3] + b"\xff\xfe}", DamagedArtifactError),
    "deep": (lambda content: b"[" * 100_000, DamagedArtifactError),
    "missing key": (_changed(_without_a_required_key), DamagedArtifactError),
    "extra key": (_changed(lambda document: document | {"line\nbreak": 1}), DamagedArtifactError),
    "no version": (
        _changed(lambda document: {name: value for name, value in document.items() if name != "format_version"}),
        DamagedArtifactError,
    ),
    "version of another type": (_changed(lambda document: document | {"format_version": True}), DamagedArtifactError),
    "newer version": (_changed(lambda document: document | {"format_version": 99}), VersionError),
    "older version": (_changed(lambda document: document | {"format_version": 0}), VersionError),
}
