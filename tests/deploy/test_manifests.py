"""Manifests of Kubernetes, KubeRay, compose and systemd."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from sd2rt.runtime.ray.serve import build_app
from sd2rt.runtime.ray.serve_args import ServeArgs
from sd2rt.runtime.server.http.config import PREFIX, ServerConfig

DEPLOY = Path(__file__).parents[2] / "deploy"
VERSIONS = ("1.30", "1.34")


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def of_kind(kind: str) -> dict[str, Any]:
    (found,) = [each for each in documents("kubernetes/sd2rt.yaml") if each["kind"] == kind]
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_accepts_the_manifest(version: str) -> None:
    kinds = []
    for document in documents("kubernetes/sd2rt.yaml"):
        kubernetes_validate.validate(document, version, strict=True)
        kinds.append(document["kind"])
    assert kinds == [
        "ServiceAccount",
        "PersistentVolumeClaim",
        "Deployment",
        "Service",
        "PodDisruptionBudget",
        "NetworkPolicy",
    ]


def test_a_wrong_manifest_would_be_seen() -> None:
    document = of_kind("Deployment")
    document["spec"]["template"]["spec"]["containers"][0]["readOnly"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, VERSIONS[0], strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_accepts_the_pods_of_ray(version: str) -> None:
    """The service itself is KubeRay's; what it makes are pods."""
    (service,) = documents("kubernetes/rayservice.yaml")
    cluster = service["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, **group["template"]}
        kubernetes_validate.validate(pod, version, strict=True)


def test_ray_serve_takes_the_arguments(tmp_path: Path) -> None:
    (service,) = documents("kubernetes/rayservice.yaml")
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    assert application["import_path"] == f"{build_app.__module__}:{build_app.__name__}"
    (tmp_path / "keys").write_text("a-key-for-tests")
    arguments = ServeArgs.model_validate(application["args"] | {"api_key_file": str(tmp_path / "keys")})
    options = arguments.deployment_options()
    assert options["ray_actor_options"]["num_gpus"] == 1
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    grace = group["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > options["graceful_shutdown_timeout_s"]
    assert options["autoscaling_config"]["max_replicas"] == group["maxReplicas"]


def test_graces_are_above_the_shutdown_timeout() -> None:
    pod = of_kind("Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    variables = {each["name"]: each["value"] for each in container["env"]}
    timeout = int(variables["SD2RT_SHUTDOWN_TIMEOUT"])
    wait = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > timeout + wait
    (compose,) = documents("compose.yaml")
    server = compose["services"]["sd2rt"]
    grace = int(server["stop_grace_period"].removesuffix("s"))
    assert grace > int(server["environment"]["SD2RT_SHUTDOWN_TIMEOUT"])
    unit = (DEPLOY / "systemd" / "sd2rt.service").read_text()
    seconds = re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert seconds is not None
    assert int(seconds[1]) > ServerConfig().shutdown_timeout


def test_labels_and_ports_fit() -> None:
    deployment = of_kind("Deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    assert of_kind("Service")["spec"]["selector"] == labels
    for kind in ("PodDisruptionBudget", "NetworkPolicy"):
        spec = of_kind(kind)["spec"]
        assert (spec.get("selector") or spec["podSelector"])["matchLabels"] == labels
    (container,) = deployment["template"]["spec"]["containers"]
    named = {port["name"] for port in container["ports"]}
    used = {container[f"{kind}Probe"]["httpGet"]["port"] for kind in ("startup", "liveness", "readiness")}
    assert used == {"http"} <= named
    volumes = {volume["name"] for volume in deployment["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_settings_exist() -> None:
    """Options and variables in all files are those of the server."""
    fields = {PREFIX + name.upper() for name in ServerConfig.model_fields} | {"SD2RT_CACHE_DIR"}
    texts = [path.read_text() for path in DEPLOY.rglob("*") if path.is_file()]
    found = {name for text in texts for name in re.findall(r"\bSD2RT_[A-Z_]+", text)}
    assert {"SD2RT_HOST", "SD2RT_API_KEY_FILE"} <= found <= fields
    arguments = [*of_kind("Deployment")["spec"]["template"]["spec"]["containers"][0]["args"]]
    arguments += documents("compose.yaml")[0]["services"]["sd2rt"]["command"]
    options = {argument for argument in arguments if argument.startswith("--")}
    assert {option.removeprefix("--").replace("-", "_") for option in options} <= set(
        ServerConfig.model_fields
    )


def test_compose_names_what_it_has() -> None:
    (compose,) = documents("compose.yaml")
    for service in compose["services"].values():
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert source in compose["volumes"] or (DEPLOY / source).is_dir()
        for secret in service.get("secrets", ()):
            assert secret in compose["secrets"]
    assert (DEPLOY / compose["services"]["sd2rt"]["build"]["context"] / "deploy" / "Dockerfile").is_file()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    unit = (DEPLOY / "systemd" / "sd2rt.service").read_text()
    assert "/opt/sd2rt/bin/sd2rt" in unit
    # It checks that programs are there.
    file = tmp_path / "sd2rt.service"
    file.write_text(unit.replace("/opt/sd2rt/bin/sd2rt", sys.executable))

    def verify() -> tuple[int, str]:
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", file], capture_output=True, text=True, check=False
        )
        lines = [line for line in done.stderr.splitlines() if "sd2rt.service" in line]
        return done.returncode, "\n".join(lines)

    assert verify() == (0, "")
    file.write_text(file.read_text().replace("ProtectSystem=strict", "ProtectEverything=strict"))
    assert "ProtectEverything" in verify()[1]
