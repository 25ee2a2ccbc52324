"""The manifests of docs/kubernetes: valid for Kubernetes, and of one piece with the configuration in them."""

import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from flows.config import PipelineConfig
from tasks.run.launchers.launcher import STOP_S


@pytest.fixture(scope="module")
def parts(repository: Path) -> dict[str, dict[str, Any]]:
    """The documents of the manifest by kind."""
    documents = yaml.safe_load_all((repository / "docs" / "kubernetes" / "training.yaml").read_text())
    return {document["kind"]: document for document in documents}


@pytest.mark.parametrize("version", ["1.33", kubernetes_validate.latest_version()])
def test_every_document_is_valid_and_has_no_unknown_key(parts: dict[str, dict[str, Any]], version: str) -> None:
    assert sorted(parts) == ["ConfigMap", "Job", "PersistentVolumeClaim", "Service"]
    for document in parts.values():
        kubernetes_validate.validate(document, version, strict=True)
    wrong = {**parts["Job"], "spec": {**parts["Job"]["spec"], "completions": "two"}}
    unknown = {**parts["Job"], "spec": {**parts["Job"]["spec"], "completion": 2}}
    for document in (wrong, unknown):
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(document, version, strict=True)


def test_job_service_and_configuration_agree(parts: dict[str, dict[str, Any]]) -> None:
    files, job, service = parts["ConfigMap"]["data"], parts["Job"], parts["Service"]
    launcher = PipelineConfig.model_validate(yaml.safe_load(files["configuration.yaml"])).launcher
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert launcher.nodes == spec["completions"] == spec["parallelism"]
    name = job["metadata"]["name"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert launcher.settings.scheduler == f"tcp://{name}-0.{pod['subdomain']}:8786"
    assert f"scheduler={launcher.settings.scheduler}\n" in files["pod.sh"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == launcher.ranks
    assert pod["terminationGracePeriodSeconds"] > STOP_S
    claims = {volume["name"]: volume for volume in pod["volumes"]}
    assert claims["data"]["persistentVolumeClaim"]["claimName"] == parts["PersistentVolumeClaim"]["metadata"]["name"]
    assert claims["configuration"]["configMap"]["name"] == parts["ConfigMap"]["metadata"]["name"]
    done = subprocess.run(["bash", "-n"], input=files["pod.sh"], text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
