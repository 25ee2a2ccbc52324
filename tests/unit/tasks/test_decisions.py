"""Promotion, hold and rollback: what MLflow and the decisions say afterwards, also where a process ended in between."""

import threading
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from storage.documents.promotion import Decision
from storage.errors import ConfigError, StorageError
from storage.registry import CHALLENGER, CHAMPION, REFUSED, Registry
from storage.tracking import TrackingUnavailableError
from tasks.retrain import decisions as module
from tasks.retrain.decisions import DECISION, FIGURES, NUMBER, REASON, decisions, hold, promote, rollback, settle
from tests.ports import free_ports
from tests.unit.tasks.registered import Lab


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory, mlflow_file: Path) -> Lab:
    """Versions 1, 2 and 3, about which nothing is decided."""
    made = Lab(tmp_path_factory.mktemp("decisions"), f"sqlite:///{mlflow_file}")
    for number in (1, 2, 3):
        made.register(number)
    return made


@pytest.fixture
def lab(registered: Lab, tmp_path: Path) -> Lab:
    client, name = MlflowClient(registered.uri), registered.registry.name
    for version in registered.registry.versions():
        for alias in version.aliases:
            client.delete_registered_model_alias(name, alias)
        for tag in version.tags.keys() & {DECISION, NUMBER, REASON, FIGURES, REFUSED}:
            client.delete_model_version_tag(name, str(version.version), tag)
    registered.decisions = tmp_path / "decisions"
    return registered


def _champion(lab: Lab) -> int | None:
    found = lab.registry.find(CHAMPION)
    return found.version if found else None


def _promote(lab: Lab, version: int) -> Decision:
    return promote(lab.registry, lab.decisions, version, reason=f"because of {version}", by="policy p")


def _said(lab: Lab) -> list[tuple[str, int | None, int | None, int | None]]:
    return [(one.action, one.champion, one.champion_before, one.challenger) for one in decisions(lab.decisions)]


def test_a_promotion_is_recorded_with_its_reason_and_figures(lab: Lab) -> None:
    lab.registry.set_alias(CHALLENGER, 1)
    figures = {"loss_difference": -0.0123456789, "interval": [-0.02, -0.005]}
    decision = promote(lab.registry, lab.decisions, 1, reason="better beyond noise", by="policy p", figures=figures)
    version = lab.registry.find(CHAMPION)
    assert version is not None
    assert (version.version, version.aliases) == (1, (CHAMPION,))
    assert decisions(lab.decisions) == [decision]
    assert (decision.checkpoint, decision.snapshot) == (version.checkpoint.digest, lab.snapshot.digest)
    assert decision.figures == figures
    assert (version.tags["prdit.decision"], version.tags["prdit.reason"]) == ("promoted", "better beyond noise")
    text = MlflowClient(lab.uri).get_model_version(lab.registry.name, "1").description
    assert "better beyond noise" in text
    assert "| loss_difference | -0.0123457 |" in text


def test_a_hold_leaves_the_champion_and_is_recorded_once(lab: Lab) -> None:
    _promote(lab, 1)
    for _ in range(2):
        hold(lab.registry, lab.decisions, 2, reason="within noise", by="policy p", figures={"d": (0.1, 0.2)})
    assert _said(lab) == [("promoted", 1, None, 1), ("held", 1, 1, 2)]
    assert _champion(lab) == 1
    challenger = lab.registry.find(CHALLENGER)
    assert challenger is not None
    assert (challenger.version, challenger.tags["prdit.decision"]) == (2, "held")
    hold(lab.registry, lab.decisions, 2, reason="still within noise", by="policy p")
    assert len(decisions(lab.decisions)) == 3


def test_rollbacks_go_back_promotion_by_promotion(lab: Lab) -> None:
    for version in (1, 2, 3):
        _promote(lab, version)
    assert rollback(lab.registry, lab.decisions, reason="grain").champion == 2
    assert _champion(lab) == 2
    assert lab.registry.find(3).tags["prdit.decision"] == "rolled back from"  # type: ignore[union-attr]
    assert rollback(lab.registry, lab.decisions).champion == 1
    with pytest.raises(ConfigError, match=r"nothing to roll back to: version 1 of .* is the first champion"):
        rollback(lab.registry, lab.decisions)
    _promote(lab, 3)
    _promote(lab, 1)
    assert rollback(lab.registry, lab.decisions).champion == 3
    assert rollback(lab.registry, lab.decisions).champion == 1
    with pytest.raises(ConfigError, match="first champion"):
        rollback(lab.registry, lab.decisions)
    assert _champion(lab) == 1


def test_nothing_to_roll_back_to_changes_nothing(lab: Lab) -> None:
    with pytest.raises(ConfigError, match=r"no version of .* is champion"):
        rollback(lab.registry, lab.decisions)
    assert decisions(lab.decisions) == []


def test_refused_versions_are_neither_promoted_nor_rolled_back_to(lab: Lab) -> None:
    for version in (1, 2, 3):
        _promote(lab, version)
    lab.registry.tag(2, {REFUSED: "a patient was forgotten"})
    assert rollback(lab.registry, lab.decisions).champion == 1  # past 2
    with pytest.raises(ConfigError, match="must not be promoted: a patient was forgotten"):
        _promote(lab, 2)
    _promote(lab, 3)
    lab.registry.tag(1, {REFUSED: "a patient was forgotten"})
    before = _said(lab)
    with pytest.raises(
        ConfigError, match=r"nothing to roll back to: .* version 1 is refused \(a patient was forgotten\)"
    ):
        rollback(lab.registry, lab.decisions)
    assert (_said(lab), _champion(lab)) == (before, 3)


@pytest.mark.parametrize("deleted", [True, False])
def test_versions_whose_files_are_gone_are_neither_promoted_nor_rolled_back_to(lab: Lab, deleted: bool) -> None:
    client = MlflowClient(lab.uri)
    lost = lab.registry.find(lab.register(4 + deleted))
    assert lost is not None
    for version in (1, lost.version, 3):
        _promote(lab, version)
    rmtree(lost.checkpoint.path)
    assert rollback(lab.registry, lab.decisions).champion == lost.version  # MLflow has them still
    _promote(lab, 3)
    if deleted:
        client.delete_logged_model(lost.model_id)
    else:
        rmtree(client.get_logged_model(lost.model_id).artifact_location.removeprefix("file://"))
    before = _said(lab)
    with pytest.raises(ConfigError, match=r"files are neither in the working folder nor in MLflow\. Restore"):
        _promote(lab, lost.version)
    assert _said(lab) == before
    assert rollback(lab.registry, lab.decisions).champion == 1  # past the lost one
    client.delete_model_version(lab.registry.name, str(lost.version))


@pytest.mark.parametrize(("version", "says"), [(9, "no version 9 .*it has 1, 2, 3"), (1, "is champion already")])
def test_what_cannot_be_promoted(lab: Lab, version: int, says: str) -> None:
    _promote(lab, 1)
    with pytest.raises(ConfigError, match=says):
        _promote(lab, version)
    assert len(decisions(lab.decisions)) == 1


class Killed(BaseException):
    """The process ends."""


_STEPS = ["set_alias", "delete_alias", "tag"]


@pytest.mark.parametrize("call", range(5))
def test_a_promotion_cut_off_anywhere_is_finished_by_the_next_call(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Killed before the n-th write to MLflow; the same call again gives one decision, whole."""
    _promote(lab, 1)
    lab.registry.set_alias(CHALLENGER, 2)
    calls = [0]
    with monkeypatch.context() as patch:
        for name in _STEPS:
            real = getattr(Registry, name)

            def cut(self: Registry, *args: Any, _real: Any = real, **kwargs: Any) -> Any:
                calls[0] += 1
                if calls[0] > call:
                    raise Killed
                return _real(self, *args, **kwargs)

            patch.setattr(Registry, name, cut)
        try:
            _promote(lab, 2)
        except Killed:
            assert call < 4
        else:
            assert call == 4  # alias, alias of the challenger, tags, mark
    if call == 4:
        return
    again = _promote(lab, 2)
    assert again.champion == 2
    assert _said(lab) == [("promoted", 1, None, 1), ("promoted", 2, 1, 2)]
    version = lab.registry.find(CHAMPION)
    assert version is not None
    assert (version.version, version.aliases, version.tags["prdit.reason"]) == (2, (CHAMPION,), "because of 2")
    assert settle(lab.registry, lab.decisions) is None


def test_a_decision_cut_off_is_finished_before_another_one(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    _promote(lab, 1)

    def killed(*args: Any) -> None:
        raise Killed

    monkeypatch.setattr(module, "_carry_out", killed)
    with pytest.raises(Killed):
        _promote(lab, 2)
    monkeypatch.undo()
    assert _champion(lab) == 1
    hold(lab.registry, lab.decisions, 3, reason="worse", by="policy p")
    assert _said(lab)[1:] == [("promoted", 2, 1, 2), ("held", 2, 2, 3)]
    assert rollback(lab.registry, lab.decisions).champion == 1


def _cut_off(lab: Lab, folder: Path, version: int, monkeypatch: pytest.MonkeyPatch, action: Any = promote) -> None:
    """A decision of a working folder that is written and not carried out."""

    def killed(*args: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(module, "_carry_out", killed)
        with pytest.raises(Killed):
            action(lab.registry, folder, version, reason="cut off", by="policy p")


@pytest.mark.parametrize("after", [(3,), (3, 1)])  # the latter: the champion before is champion again
def test_a_promotion_cut_off_does_not_undo_one_of_another_folder(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: tuple[int, ...]
) -> None:
    _promote(lab, 1)
    _cut_off(lab, lab.decisions, 2, monkeypatch)
    for version in after:
        promote(lab.registry, tmp_path / "other", version, reason="of another folder", by="command")
    assert settle(lab.registry, lab.decisions) is None
    assert _champion(lab) == after[-1]


def test_a_version_about_which_another_folder_decided_later_is_left_alone(lab: Lab, tmp_path: Path) -> None:
    _promote(lab, 1)
    other = tmp_path / "other"
    promote(lab.registry, other, 2, reason="of another folder", by="command")
    hold(lab.registry, other, 1, reason="of another folder", by="command")
    assert settle(lab.registry, lab.decisions) is None
    assert _champion(lab) == 2


def test_a_hold_cut_off_does_not_take_the_alias_of_a_later_challenger(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    _cut_off(lab, lab.decisions, 1, monkeypatch, hold)
    lab.registry.set_alias(CHALLENGER, 2)
    assert settle(lab.registry, lab.decisions) is None
    assert lab.registry.find(CHALLENGER).version == 2  # type: ignore[union-attr]


def test_a_champion_moved_in_mlflows_page_after_a_decision_was_cut_off_stays(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    _promote(lab, 1)
    _cut_off(lab, lab.decisions, 2, monkeypatch)
    lab.registry.set_alias(CHAMPION, 3)
    assert settle(lab.registry, lab.decisions) is None
    assert _champion(lab) == 3


def test_a_description_is_cut_where_postgresql_would_refuse_it(lab: Lab) -> None:
    figures = {f"figure {index}": "x" * 100 for index in range(100)}
    promote(lab.registry, lab.decisions, 1, reason="many figures", by="policy p", figures=figures)
    text = MlflowClient(lab.uri).get_model_version(lab.registry.name, "1").description
    assert len(text) == 5000
    assert text.endswith("(the rest is in decision 1 of the working folder: `prdit models show … --json` prints it)")


def test_a_champion_chosen_in_mlflows_page_stays(lab: Lab) -> None:
    _promote(lab, 1)
    lab.registry.set_alias(CHAMPION, 3)
    hold(lab.registry, lab.decisions, 2, reason="worse", by="policy p")
    assert _champion(lab) == 3
    _promote(lab, 2)
    assert rollback(lab.registry, lab.decisions).champion == 3


def test_two_promotions_at_once_are_two_decisions_in_some_order(lab: Lab) -> None:
    _promote(lab, 1)
    failures: list[BaseException] = []

    def run(version: int) -> None:
        try:
            registry = Registry(lab.uri, lab.registry.name, workdir=lab.workdir)
            promote(registry, lab.decisions, version, reason="at once", by="command")
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=run, args=(version,)) for version in (2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []
    (_, first, *_), (_, second, before, _) = _said(lab)[1:]
    assert {first, second} == {2, 3}
    assert (before, _champion(lab)) == (first, second)


def test_a_damaged_decision_is_said_and_nothing_is_decided(lab: Lab) -> None:
    _promote(lab, 1)
    (lab.decisions / "00000001.json").write_text("{")
    with pytest.raises(
        StorageError, match=r"00000001\.json is damaged.*MLflow's aliases say which version is champion"
    ):
        _promote(lab, 2)
    assert _champion(lab) == 1


def test_without_an_answer_of_mlflow_nothing_is_decided(lab: Lab) -> None:
    _promote(lab, 1)
    registry = Registry(lab.uri, lab.registry.name)
    registry.uri, registry._opened = f"http://127.0.0.1:{free_ports()}", None
    with pytest.raises(TrackingUnavailableError, match="connection refused"):
        promote(registry, lab.decisions, 2, reason="r", by="command")
    assert len(decisions(lab.decisions)) == 1
