"""Resources for KubeRay have the fields of ray.io/v1 with their types, and pods that Kubernetes takes.

The fields are those of `raycluster_types.go` and `rayjob_types.go` in KubeRay 1.4 and newer; pods are checked by the schemas of
Kubernetes itself.
"""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError

from tests.deploy.commands import DEPLOY, documents

KUBERNETES = "1.33"
STRING, BOOLEAN, OBJECT = {"type": "string"}, {"type": "boolean"}, {"type": "object"}
NUMBER = {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": STRING}


def _fields(required: str, **fields: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": required.split(), "properties": fields}


HEAD_GROUP = _fields(
    "rayStartParams template",
    template=OBJECT,
    headService=OBJECT,
    enableIngress=BOOLEAN,
    rayStartParams=TEXTS,
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]},
)
WORKER_GROUP = _fields(
    "groupName minReplicas maxReplicas rayStartParams template",
    groupName=STRING,
    replicas=NUMBER,
    minReplicas=NUMBER,
    maxReplicas=NUMBER,
    idleTimeoutSeconds=NUMBER,
    rayStartParams=TEXTS,
    template=OBJECT,
    scaleStrategy=OBJECT,
    numOfHosts=NUMBER,
    suspend=BOOLEAN,
)
AUTOSCALER = _fields(
    "",
    resources=OBJECT,
    image=STRING,
    imagePullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
    securityContext=OBJECT,
    idleTimeoutSeconds=NUMBER,
    upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    env={"type": "array"},
    envFrom={"type": "array"},
    volumeMounts={"type": "array"},
)
CLUSTER = _fields(
    "headGroupSpec",
    suspend=BOOLEAN,
    managedBy=STRING,
    autoscalerOptions=AUTOSCALER,
    headServiceAnnotations=TEXTS,
    enableInTreeAutoscaling=BOOLEAN,
    gcsFaultToleranceOptions=OBJECT,
    headGroupSpec=HEAD_GROUP,
    rayVersion=STRING,
    workerGroupSpecs={"type": "array", "items": WORKER_GROUP},
)
JOB = _fields(
    "entrypoint rayClusterSpec",
    activeDeadlineSeconds={"type": "integer", "minimum": 1},
    backoffLimit=NUMBER,
    rayClusterSpec=CLUSTER,
    submitterPodTemplate=OBJECT,
    metadata=TEXTS,
    clusterSelector=TEXTS,
    submitterConfig=_fields("", backoffLimit=NUMBER),
    managedBy=STRING,
    deletionStrategy=OBJECT,
    entrypoint=STRING,
    runtimeEnvYAML=STRING,
    jobId=STRING,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
    entrypointResources=STRING,
    entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"},
    ttlSecondsAfterFinished=NUMBER,
    shutdownAfterJobFinishes=BOOLEAN,
    suspend=BOOLEAN,
)
SPECS = {"RayCluster": CLUSTER, "RayJob": JOB}
RESOURCES = {path.name: path for path in sorted((DEPLOY / "kuberay").glob("*.yaml")) if path.name != "storage.yaml"}


def read(name: str) -> dict[str, Any]:
    (resource,) = documents(RESOURCES[name])
    found: dict[str, Any] = resource
    return found


def check(resource: dict[str, Any]) -> None:
    """Raises ValidationError for a field that KubeRay does not know or of another type; kubernetes_validate's for pods."""
    assert resource["apiVersion"] == "ray.io/v1"
    Draft202012Validator(SPECS[resource["kind"]]).validate(resource["spec"])
    for group in groups(resource):
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": group["template"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def groups(resource: dict[str, Any]) -> list[dict[str, Any]]:
    """The head's group, then those of the workers."""
    spec = resource["spec"].get("rayClusterSpec", resource["spec"])
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


@pytest.mark.parametrize("name", RESOURCES)
def test_resources_fit_their_schemas(name: str) -> None:
    check(read(name))


def test_the_storage_fits_kubernetes() -> None:
    (claim,) = documents(DEPLOY / "kuberay" / "storage.yaml")
    kubernetes_validate.validate(claim, KUBERNETES, strict=True)
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("backOffLimit",), 3),
        (("backoffLimit",), "3"),
        (("rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("rayClusterSpec", "autoscalerOptions", "upscalingMode"), "Quick"),
    ],
)
def test_a_wrong_field_is_seen(path: tuple[str, ...], value: object) -> None:
    job = read("caption.yaml")
    inner = job["spec"]
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(ValidationError):
        check(job)


def test_a_wrong_pod_is_seen() -> None:
    job = read("caption.yaml")
    groups(job)[1]["template"]["spec"]["containers"][0]["resource"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        check(job)


@pytest.mark.parametrize("name", RESOURCES)
def test_pods_run_without_root_on_storage_that_all_share(name: str) -> None:
    (claim,) = documents(DEPLOY / "kuberay" / "storage.yaml")
    for group in groups(read(name)):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000
        shared = [volume for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
        assert [volume["persistentVolumeClaim"]["claimName"] for volume in shared] == [claim["metadata"]["name"]]
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}[shared[0]["name"]] == "/data"
            assert container["resources"]["limits"]["memory"], "Ray must know what it may take"


@pytest.mark.parametrize("name", [name for name in RESOURCES if name != "cluster.yaml"])
def test_a_job_waits_for_the_gpus_that_its_workers_can_have(name: str) -> None:
    job = read(name)
    (workers,) = groups(job)[1:]
    (container,) = workers["template"]["spec"]["containers"]
    most = workers["maxReplicas"] * int(container["resources"]["limits"]["nvidia.com/gpu"])
    words = job["spec"]["entrypoint"].split()
    option = "--num_workers" if "trainer.fit" in words else "--ray.wait_for_gpus"
    assert int(words[words.index(option) + 1]) == most
    assert "--distributed.wait_for_gpus_s" in words or option == "--ray.wait_for_gpus"
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]
    named = [word for word in words if word.startswith("/")]
    assert named and all(Path(word).is_relative_to("/data") for word in named)
