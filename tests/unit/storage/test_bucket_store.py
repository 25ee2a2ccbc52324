"""A volume store in a bucket, on a real S3 server over HTTP, with and without faults."""

import os
import pickle
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import boto3
import numpy as np
import pytest

from storage.bucket_path import BucketPath
from storage.documents.snapshot import SnapshotVolume
from storage.errors import ConfigError, DamagedArtifactError, MissingArtifactError, UnreadableError, UnwritableError
from storage.geometry import Volume
from storage.level_cache import LevelCache
from storage.places import as_place
from storage.snapshots import list_all, load_snapshot, newest, open_snapshot
from storage.verification import check_lists, check_volume
from storage.volume_store import VolumeStore
from tests.s3 import BUCKET, Faults, forget_clients, s3_server, use


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def faults(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    found = Faults(server)
    use(monkeypatch, found.address)
    yield found
    found.stop()


@pytest.fixture
def path(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    use(monkeypatch, server)
    monkeypatch.setenv("PRDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return as_place(f"s3://{BUCKET}/{tmp_path.name}/store")


def smooth(seed: int = 0) -> Volume:
    hu = np.random.default_rng(seed).normal(-300, 500, (70, 81, 66)).clip(-1024, 2000).astype(np.int16)
    return Volume(hu, (1.0,) * 3, (-10.0, 20.0, 30.5))


def listed(store: VolumeStore, *names: str) -> None:
    volumes = {}
    for name in names:
        record = store.commit_record(name)
        volumes[name] = SnapshotVolume(
            shape=record.shape, patient_key="ab" * 16, patient_known=True, attributes={}, labels={}
        )
    list_all(store, volumes, "test")


def keys(prefix: Path) -> list[str]:
    found = boto3.client("s3").list_objects_v2(Bucket=BUCKET, Prefix=f"{BucketPath(prefix).key}/")
    return [each["Key"] for each in found.get("Contents", [])]


def test_what_is_written_is_read_and_equals_a_local_store(path: Path, tmp_path: Path) -> None:
    stores = [VolumeStore.create(place) for place in (path, tmp_path / "local")]
    for store in stores:
        assert store.write(smooth(), volume_id="a", attributes={"KVP": 120.0})
        assert not store.write(smooth(), volume_id="a", attributes={"KVP": 120.0})
    remote, local = (VolumeStore.open(store.path) for store in stores)
    assert remote.volume_ids() == ["a"]
    assert remote.commit_record("a") == local.commit_record("a")
    for level in range(3):
        np.testing.assert_array_equal(remote.read_level("a", level).hu, local.read_level("a", level).hu)
    np.testing.assert_array_equal(remote.read_view("a", 32, 64), local.read_view("a", 32, 64))
    below = {key.partition("/store/")[2] for key in keys(path)}
    assert below == {file.relative_to(local.path).as_posix() for file in local.path.rglob("*") if file.is_file()}


def test_snapshots_and_verification(path: Path) -> None:
    store = VolumeStore.create(path)
    for name, seed in (("a", 1), ("b", 2)):
        store.write(smooth(seed), volume_id=name, attributes={})
    listed(store, "a", "b")
    ref = newest(store)
    assert ref.uri == str(path)
    assert sorted(load_snapshot(ref).volumes) == ["a", "b"]
    opened, _ = open_snapshot(pickle.loads(pickle.dumps(ref)))  # noqa: S301 - as it travels to a worker
    assert [check_volume(opened, name) for name in ("a", "b")] == [None, None]
    assert check_lists(opened) == []
    key = next(key for key in keys(path) if "/volumes/a-" in key and key.endswith("0/c/0/0/0"))
    content = boto3.client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read()
    boto3.client("s3").put_object(Bucket=BUCKET, Key=key, Body=content[:-1] + bytes([content[-1] ^ 1]))
    found = check_volume(store, "a")
    assert found is not None
    assert "SHA-256" in found.message
    assert f"s3://{BUCKET}/{key}" in found.message
    boto3.client("s3").delete_object(Bucket=BUCKET, Key=key)
    with pytest.raises(MissingArtifactError, match=r"--repair"):
        VolumeStore.open(path).verify("a")
    store.repair(smooth(1), volume_id="a", attributes={})
    assert check_volume(store, "a") is None
    assert store.delete("a")
    assert store.volume_ids() == ["b"]
    assert [key for key in keys(path) if "/volumes/a" in key] == []


def _write(text: str, index: int) -> bool:
    store = VolumeStore.create(as_place(text))
    return store.write(smooth(), volume_id="a", attributes={"KVP": float(index)})


def test_of_several_writers_one_commits(path: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        wrote = list(pool.map(_write, [str(path)] * 8, range(8)))
    store = VolumeStore.open(path)
    assert sum(wrote) == 1
    assert store.commit_record("a").attributes == {"KVP": float(wrote.index(True))}
    store.verify("a")


def test_a_put_whose_answer_is_lost_counts_once(path: Path, faults: Faults) -> None:
    cut: list[str] = []

    def rule(method: str, where: str, number: int) -> str:
        if method == "PUT" and where not in cut:
            cut.append(where)
            return "cut" if len(cut) % 2 else "cut-before"
        return ""

    faults.rule = rule
    store = VolumeStore.create(path)
    assert store.write(smooth(), volume_id="a", attributes={})
    faults.rule = lambda method, where, number: ""
    assert not store.write(smooth(), volume_id="a", attributes={})
    assert len(cut) == len(keys(path))
    assert store.volume_ids() == ["a"]
    store.verify("a")


def test_errors_of_the_server_are_repeated(path: Path, faults: Faults) -> None:
    faults.rule = lambda method, where, number: "503" if number % 2 else ""
    store = VolumeStore.create(path)
    assert store.write(smooth(), volume_id="a", attributes={})
    np.testing.assert_array_equal(store.read_level("a").hu, smooth().hu)


def test_a_bucket_that_says_no(path: Path, faults: Faults) -> None:
    faults.rule = lambda method, where, number: "403" if method == "PUT" else ""
    with pytest.raises(UnwritableError, match=r"refuses these credentials \(AccessDenied\).*policy"):
        VolumeStore.create(path)
    assert keys(path) == []
    faults.rule = lambda method, where, number: "403"
    with pytest.raises(UnreadableError, match="refuses these credentials") as caught:
        VolumeStore.open(path).volume_ids()
    assert "secret-of-the-test" not in str(caught.value)


def test_a_bucket_without_conditions_is_refused(path: Path, faults: Faults) -> None:
    faults.rule = lambda method, where, number: "unconditional"
    with pytest.raises(ConfigError, match=r"ignores the condition of a put"):
        VolumeStore.create(path)
    assert keys(path) == []


def test_no_bucket_and_no_credentials(path: Path, monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    with pytest.raises(UnreadableError, match="there is no bucket elsewhere"):
        VolumeStore.create(as_place("s3://elsewhere/store"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    forget_clients()
    with pytest.raises(ConfigError, match=r"No credentials for s3://scans. Set AWS_PROFILE"):
        VolumeStore.create(path)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "minio.example:9000")
    forget_clients()
    with pytest.raises(ConfigError, match=r"settings for S3 cannot be used: .*minio.example:9000"):
        VolumeStore.create(path)


def test_the_cache_stays_within_its_size_and_spares_requests(
    path: Path, faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = VolumeStore.create(path)
    for name, seed in (("a", 1), ("b", 2), ("c", 3)):
        writer.write(smooth(seed), volume_id=name, attributes={})
    size = sum(file.size for file in writer.commit_record("a").level_files(0).values())
    monkeypatch.setenv("PRDIT_CACHE_GB", str(2.5 * size / 1e9))
    store = VolumeStore.open(path)
    for name in ("a", "b"):
        store.read_level(name)
    faults.seen.clear()
    for name, seed in (("a", 1), ("b", 2)):
        np.testing.assert_array_equal(store.read_level(name).hu, smooth(seed).hu)
    assert faults.seen == []
    store.read_level("a")
    store.read_level("c")
    kept = {entry.name.split("-")[1] for entry in (tmp_path / "cache" / "levels").iterdir()}
    assert kept == {"a", "c"}
    [entry] = [entry for entry in (tmp_path / "cache" / "levels").iterdir() if "-a-" in entry.name]
    (entry / "c/0/0/0").write_bytes(b"")
    np.testing.assert_array_equal(store.read_level("a").hu, smooth(1).hu)


def test_other_things_in_the_folder_of_the_cache_stay(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "home" / "results" / "thesis.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("not a copy")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PRDIT_CACHE", "~")
    monkeypatch.setenv("PRDIT_CACHE_GB", "0")
    store = VolumeStore.create(path)
    store.write(smooth(), volume_id="a", attributes={})
    for level in (1, 2):
        store.read_level("a", level)
    assert mine.read_text() == "not a copy"
    assert [entry.name[-4:] for entry in (tmp_path / "home" / "levels").iterdir()] == [
        f"{store.commit_record('a').folder}-2"[-4:]
    ]


def test_a_copy_that_is_read_is_not_removed(tmp_path: Path) -> None:
    def fetch(folder: Path) -> None:
        (folder / "x").write_bytes(b"12345678")

    cache = LevelCache(tmp_path, 8)
    with cache.held("one", 8, fetch, lambda folder: True) as first, cache.held("two", 8, fetch, lambda folder: True):
        assert first.is_dir()
        assert (tmp_path / "two").is_dir()
    with cache.held("three", 8, fetch, lambda folder: True):
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["three"]


def test_damage_on_the_way_is_not_cached(path: Path, tmp_path: Path) -> None:
    store = VolumeStore.create(path)
    store.write(smooth(), volume_id="a", attributes={})
    key = next(key for key in keys(path) if key.endswith("0/c/0/0/0"))
    boto3.client("s3").put_object(Bucket=BUCKET, Key=key, Body=b"other bytes")
    with pytest.raises(DamagedArtifactError, match="SHA-256"):
        store.read_level("a")
    assert list((tmp_path / "cache" / "levels").iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        "gs://bucket/x",
        "https://bucket/x",
        "s3://",
        "s3:///prefix",
        "s3:bucket/x",
        " s3://bucket/x",
        "S3://bucket/x",
        "s3://bucket /x",
        "s3://bucket:9000/x",
        "s3://bucket/a/../b",
    ],
)
def test_other_places_are_named(text: str) -> None:
    with pytest.raises(ConfigError, match="s3://BUCKET/PREFIX"):
        as_place(text)


def test_a_secret_in_a_url_is_not_shown() -> None:
    with pytest.raises(ConfigError, match="AWS_ENDPOINT_URL_S3") as refused:
        as_place("s3://key:hunter2@bucket/x")
    assert "hunter2" not in str(refused.value)


def test_what_needs_a_folder_is_refused(path: Path) -> None:
    with pytest.raises(UnwritableError, match="needs a folder of this machine"):
        os.stat(path)  # noqa: PTH116 - what must not find something local
    with pytest.raises(UnwritableError, match="needs a folder of this machine"):
        path.touch()


def test_a_cache_that_is_removed_all_the_time_is_said(tmp_path: Path) -> None:
    def fetch(folder: Path) -> None:
        (folder / "x").write_bytes(b"1")
        shutil.rmtree(tmp_path / "cache")

    cache = LevelCache(tmp_path / "cache", 8)
    with pytest.raises(UnwritableError, match="PRDIT_CACHE"), cache.held("one", 1, fetch, lambda folder: True):
        pass


def test_a_copy_that_is_removed_while_it_is_read_counts_as_unread(tmp_path: Path) -> None:
    def fetch(folder: Path) -> None:
        (folder / "x").write_bytes(b"1")

    def whole(folder: Path) -> bool:
        return (folder / "x").is_file()

    cache = LevelCache(tmp_path, 8)
    with (
        pytest.raises(UnreadableError, match="removed while it was read"),
        cache.held("one", 1, fetch, whole) as folder,
    ):
        (folder / "x").unlink()
