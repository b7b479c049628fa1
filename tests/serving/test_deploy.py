"""What Docker Compose and Kubernetes accept, and what TensorFlow Serving needs of them."""

import json
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from compose_spec import PyCompose
from tf_serving_batches import parsed_parameters

from components.serving_pusher.batching import batching_parameters
from serving.releases import SERVED_NETWORKS
from serving.releases import __main__ as releases_command
from serving.seals import KEY_ENV

DEPLOY = Path(__file__).resolve().parents[2] / "serving" / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
OLDEST_KUBERNETES = "1.30"
SERVING_DIR = "/srv/serving_model"
PARAMETERS = "batching_parameters.txt"
# Of no use without one another: the second leaves releases alone that have no parameters.
BATCHING_FLAGS = (
    "--enable_batching=true",
    "--enable_per_model_batching_parameters=true",
    f"--batching_parameters_file=/etc/sd-serving/{PARAMETERS}",
)


def compose(**environment: str) -> dict[str, Any]:
    def value(match: re.Match[str]) -> str:
        name, default = match[1], match[2]
        if name not in environment and default.startswith(":-"):
            return default.removeprefix(":-")
        return environment[name]

    text = (DEPLOY / "docker-compose.yaml").read_text()
    text = re.sub(r"\$\{(\w+)((?::[-?][^}]*)?)\}", value, text)
    # The parser knows no merge keys, which are YAML's own.
    content = yaml.safe_load(text)
    PyCompose.from_yaml(yaml.safe_dump(content)).validate()
    return content


def kubernetes() -> dict[str, dict[str, Any]]:
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    found = {}
    for name in kustomization["resources"]:
        for document in yaml.safe_load_all((KUBERNETES / name).read_text()):
            found[document["kind"]] = document
    files = {path.name for path in KUBERNETES.iterdir()}
    assert files == {*kustomization["resources"], "kustomization.yaml", PARAMETERS}
    return found


def test_compose_is_valid_and_serves_the_directory() -> None:
    content = compose(SERVING_DIR=SERVING_DIR)
    services = content["services"]
    verify = services.pop("verify")
    assert set(services) == {"cpu", "gpu"}
    for service in services.values():
        # Nothing is loaded that is not what was pushed.
        assert service["depends_on"] == {"verify": {"condition": "service_completed_successfully"}}
        assert f"--model_config_file={SERVING_DIR}/models.config" in service["command"]
        assert service["volumes"] == [
            f"{SERVING_DIR}:{SERVING_DIR}:ro",
            f"./kubernetes/{PARAMETERS}:/etc/sd-serving/{PARAMETERS}:ro",
        ]
        assert set(BATCHING_FLAGS) < set(service["command"])
        # TensorFlow Serving asks nobody for a password.
        assert all(str(port).startswith("127.0.0.1:") for port in service["ports"])
    assert verify["command"] == [SERVING_DIR]
    assert verify["volumes"] == [f"{SERVING_DIR}:{SERVING_DIR}:ro"]
    # By its name alone.
    assert verify["environment"] == [KEY_ENV]
    device = content["services"]["gpu"]["deploy"]["resources"]["reservations"]["devices"][0]
    assert device["capabilities"] == ["gpu"]


def test_the_container_that_verifies_has_what_it_imports() -> None:
    dockerfile = (DEPLOY / "verify.Dockerfile").read_text()
    entry = json.loads(re.findall(r"^ENTRYPOINT (.*)$", dockerfile, re.MULTILINE)[0])
    assert releases_command.command().parse_args([*entry[3:], SERVING_DIR]).loaded
    pinned = re.compile(r"^([a-z0-9][\w.-]*)==(\S+)", re.MULTILINE)
    there = dict(pinned.findall((DEPLOY / "verify.lock").read_text()))
    tested = dict(pinned.findall((DEPLOY.parents[1] / "requirements.lock").read_text()))
    assert {"model-signing", "numpy", "pyopenssl"} < there.keys()
    assert there.items() <= tested.items()


def test_compose_asks_for_the_directory() -> None:
    with pytest.raises(KeyError, match="SERVING_DIR"):
        compose()


@pytest.mark.parametrize("version", [OLDEST_KUBERNETES, kubernetes_validate.latest_version()])
def test_manifests_are_valid(version: str) -> None:
    documents = kubernetes()
    assert set(documents) == {
        *("ServiceAccount", "Deployment", "Service", "PodDisruptionBudget"),
        "HorizontalPodAutoscaler",
    }
    for document in documents.values():
        kubernetes_validate.validate(document, version, strict=True)
    del documents["Deployment"]["spec"]["selector"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(documents["Deployment"], version, strict=True)


def test_manifests_fit_together() -> None:
    documents = kubernetes()
    deployment, service = documents["Deployment"], documents["Service"]
    pod = deployment["spec"]["template"]
    [container] = pod["spec"]["containers"]
    labels = pod["metadata"]["labels"]
    for selector in (
        deployment["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        documents["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    [verify] = pod["spec"]["initContainers"]
    command = [*verify["command"], *verify["args"]]
    assert command[:3] == ["python", "-m", "serving.releases"]
    assert releases_command.command().parse_args(command[3:]).loaded
    assert [variable["name"] for variable in verify["env"]] == ["SERVING_DIR", KEY_ENV]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": 8500, "rest": 8501}
    assert {port["targetPort"] for port in service["spec"]["ports"]} == set(ports)
    assert {f"--port={ports['grpc']}", f"--rest_api_port={ports['rest']}"} < set(container["args"])
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        [action] = (value for value in container[name].values() if isinstance(value, dict))
        assert action["port"] in ports
        assert action.get("path", "/v1/models/diffusion_model/").split("/")[3] in SERVED_NETWORKS
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "cloud.google.com/gke-accelerator" in pod["spec"]["nodeSelector"]
    account = documents["ServiceAccount"]["metadata"]["name"]
    assert pod["spec"]["serviceAccountName"] == account
    target = documents["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert target["name"] == deployment["metadata"]["name"]
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    generated, batching = kustomization["configMapGenerator"]
    [volume], [mount] = pod["spec"]["volumes"], container["volumeMounts"]
    assert volume == {"name": mount["name"], "configMap": {"name": batching["name"]}}
    assert batching["files"] == [PARAMETERS]
    assert f"{mount['mountPath']}/{PARAMETERS}" == BATCHING_FLAGS[-1].partition("=")[2]
    assert set(BATCHING_FLAGS) < set(container["args"])
    [variable] = (v["valueFrom"]["configMapKeyRef"] for v in container["env"] if "valueFrom" in v)
    assert variable["name"] == generated["name"]
    [literal] = generated["literals"]
    assert literal.partition("=")[0] == variable["key"]


def test_batches_are_as_tensorflow_serving_takes_them() -> None:
    text = (KUBERNETES / PARAMETERS).read_text()
    assert parsed_parameters(text).num_batch_threads.value == 2
    parameters = parsed_parameters(batching_parameters(8).decode())
    assert parameters.max_execution_batch_size.value == 8
    # A request of more pictures than that is divided; without this, it would be refused.
    assert parameters.enable_large_batch_splitting.value
    assert parameters.max_batch_size.value >= 100
    # A latent or context that is filled up is another one.
    assert not parameters.pad_variable_length_inputs
