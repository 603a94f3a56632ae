"""What `deployment` adds: files that linters, schemas and policies accept, and that go again."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.combinations import Combination, parse_combination
from tests.environments import Environments
from tests.programs import program, run
from tests.rendering import Renderer
from tests.service import Service, render_command
from tests.snapshot import clean_files, read_tree
from tests.vocabulary import UNKNOWN, forbidden_words

# Every conditional line of these files goes both ways.
CHOICES = {
    "docker": (
        "sqlite",
        "sqlite+redis+arq+jwt+websockets+example",
        "postgresql+redis+arq+jwt+websockets+example",
    ),
    "kubernetes": (
        "postgresql",
        "postgresql+redis+jwt+example",
        "postgresql+redis+arq+jwt+websockets+example",
    ),
}
RENDERS = [(choice, name) for choice, names in CHOICES.items() for name in names]
OVERLAYS = ("staging", "production")
# The oldest that its makers still looked after when this was written, and the newest.
KUBERNETES_VERSIONS = ("1.35", "1.37")
CHECKOV_VERSION = "3.3.30"
# What checkov asks for and these files do not do.
DECIDED_OTHERWISE = {
    "CKV_DOCKER_7": "the base is named by digest, which it does not see in an argument",
    "CKV_K8S_11": "a limit of processor time throttles what is nearly done; requests share it out",
    "CKV_K8S_15": "what is named by a digest need not be pulled again",
    "CKV_K8S_35": "settings are environment variables, and files of them are only read at start",
    "CKV_K8S_43": "`kustomize edit set image` names the digest at each release",
}
# Of what is in deploy/, rules and dashboards (deploy/observability) are everywhere.
OWN_FOLDERS = (".devcontainer", ".dockerignore", "deploy", "devtools/deployment.py")

Rendered = tuple[str, Combination, Path]
Manifests = list[dict[str, Any]]


@pytest.fixture(scope="module", params=RENDERS, ids="-".join)
def rendered_choice(request: pytest.FixtureRequest, renderer: Renderer) -> Rendered:
    choice, name = request.param
    combination = parse_combination(name)
    return choice, combination, renderer.render({**combination.answers, "deployment": choice})


@pytest.fixture(scope="module")
def overlays(rendered_choice: Rendered) -> dict[str, Manifests]:
    """What each overlay applies."""
    choice, _, folder = rendered_choice
    if choice != "kubernetes":
        return {}
    if not shutil.which("kubectl"):
        pytest.skip("install kubectl to have this run: its `kubectl kustomize` builds the overlays")
    return {name: build(folder / "deploy" / "kubernetes" / "overlays" / name) for name in OVERLAYS}


def build(overlay: Path) -> Manifests:
    command = ["kubectl", "kustomize", str(overlay)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "deprecated" not in result.stderr
    return list(yaml.safe_load_all(result.stdout))


def test_it_only_adds_files(rendered_choice: Rendered, renderer: Renderer) -> None:
    choice, combination, folder = rendered_choice
    without = read_tree(renderer.render(combination.answers))
    with_files = read_tree(folder)
    changed = {name for name in without if without[name] != with_files[name]}
    assert changed == {".copier-answers.yml", "README.md"}
    added = with_files.keys() - without.keys()
    assert all(name.startswith((*OWN_FOLDERS, "tests/test_deployment.py")) for name in added)
    has_kubernetes = any(name.startswith("deploy/kubernetes/") for name in added)
    assert has_kubernetes == (choice == "kubernetes")


def test_nothing_speaks_of_what_is_off(rendered_choice: Rendered) -> None:
    choice, combination, folder = rendered_choice
    words = [word for word in forbidden_words(combination) if word not in UNKNOWN]
    words += ["kubernetes", "kustomize", "kubectl"] if choice == "docker" else []
    pattern = re.compile("|".join(words), re.IGNORECASE)
    own = [name for name in clean_files(folder) if name.startswith(OWN_FOLDERS)]
    for name in own:
        found = pattern.search(f"{name}\n{(folder / name).read_text()}")
        assert found is None, f"{name}: {found}"


def test_the_dockerfiles_pass_hadolint(rendered_choice: Rendered) -> None:
    _, _, folder = rendered_choice
    for name in ("deploy/Dockerfile", ".devcontainer/Dockerfile"):
        run(program("hadolint"), "--failure-threshold", "style", folder / name)


def test_the_base_image_is_pinned_once(rendered_choice: Rendered) -> None:
    _, _, folder = rendered_choice
    text = (folder / "deploy" / "Dockerfile").read_text()
    assert re.findall(r"@sha256:[0-9a-f]{64}$", text, re.MULTILINE)
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE) == ["${PYTHON_IMAGE}"] * 2


def test_compose_files_fit_their_schema_and_each_other(rendered_choice: Rendered) -> None:
    _, combination, folder = rendered_choice
    files = [folder / "deploy" / name for name in ("compose.yaml", "compose.development.yaml")]
    run(program("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", *files)
    whole, override = (yaml.safe_load(file.read_text())["services"] for file in files)
    expected = {"migration", "service"}
    expected |= {"postgres"} if combination.database == "postgresql" else set()
    expected |= {"valkey"} & ({"valkey"} if "redis" in combination.words else set())
    expected |= {"collector", "prometheus", "grafana"}
    expected |= {"worker"} if "arq" in combination.words else set()
    assert set(whole) == expected
    assert set(override) <= expected
    # In health-gated order: servers, the migration, then what serves.
    for name in {"service", "worker"} & expected:
        conditions = {k: v["condition"] for k, v in whole[name]["depends_on"].items()}
        assert conditions.pop("migration") == "service_completed_successfully"
        assert set(conditions.values()) <= {"service_healthy"}
    # The collector's image has no program that could ask it, and nobody waits for it.
    for name in expected - {"migration", "collector"}:
        own = whole[name].get("healthcheck")
        assert own or name == "service", f"nobody sees whether {name} is healthy"
    assert (folder / "deploy" / whole["service"]["env_file"]).exists()


def test_prometheus_finds_whom_it_may_read(rendered_choice: Rendered) -> None:
    _, _, folder = rendered_choice
    whole = yaml.safe_load((folder / "deploy" / "compose.yaml").read_text())
    [subnet] = whole["networks"]["metrics"]["ipam"]["config"]
    assert whole["networks"]["metrics"]["internal"]
    config = yaml.safe_load((folder / "deploy/observability/prometheus.yaml").read_text())
    settings = (folder / "deploy" / "settings.env").read_text()
    worker = re.search(r"^WORKER_METRICS_PORT=(\d+)$", settings, re.MULTILINE)
    ports = {"service": 8000, "worker": int(worker[1]) if worker else 0}
    found = {}
    for job in config["scrape_configs"]:
        [discovery] = job["dns_sd_configs"]
        [name] = discovery["names"]
        found[name] = discovery["port"]
        assert "metrics" in whole["services"][name]["networks"]
        assert whole["services"][name]["environment"]["METRICS_NETWORKS"] == subnet["subnet"]
    assert found == {name: port for name, port in ports.items() if name in whole["services"]}
    assert whole["services"]["prometheus"]["networks"] == ["metrics"]
    if shutil.which("promtool"):
        run("promtool", "check", "config", folder / "deploy/observability/prometheus.yaml")


def test_pods_say_where_their_metrics_are(overlays: dict[str, Manifests]) -> None:
    for manifests in overlays.values():
        [settings] = [m["data"] for m in manifests if m["kind"] == "ConfigMap"]
        assert settings["METRICS_NETWORKS"]
        ports = {"service": "8000", "worker": settings.get("WORKER_METRICS_PORT")}
        for _, metadata, spec in pods(manifests):
            if spec.get("restartPolicy") == "Never":
                continue
            component = metadata["labels"]["app.kubernetes.io/component"]
            assert metadata["annotations"]["prometheus.io/port"] == ports[component]
            [policy] = [
                m["spec"]["ingress"]
                for m in manifests
                if m["kind"] == "NetworkPolicy"
                and "ingress" in m["spec"]
                and m["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
                == component
            ]
            assert policy == [{"ports": [{"protocol": "TCP", "port": int(ports[component])}]}]


def test_the_dev_container_is_described(rendered_choice: Rendered) -> None:
    _, _, folder = rendered_choice
    description = json.loads((folder / ".devcontainer" / "devcontainer.json").read_text())
    assert (folder / ".devcontainer" / description["build"]["dockerfile"]).exists()


def test_manifests_fit_the_schemas_of_two_versions(overlays: dict[str, Manifests]) -> None:
    for manifest in (m for manifests in overlays.values() for m in manifests):
        for version in KUBERNETES_VERSIONS:
            kubernetes_validate.validate(manifest, version, strict=True)


def pods(manifests: Manifests) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """The name, metadata and specification of every pod that something makes."""
    for manifest in manifests:
        if template := manifest.get("spec", {}).get("template"):
            yield manifest["metadata"]["name"], template["metadata"], template["spec"]


def test_pods_keep_to_the_restricted_profile(overlays: dict[str, Manifests]) -> None:
    """Kubernetes' Pod Security Standards, and what linters ask for besides."""
    for manifests in overlays.values():
        found = list(pods(manifests))
        assert found
        for name, _, spec in found:
            security = spec["securityContext"]
            assert security["runAsNonRoot"], name
            assert security["runAsUser"] == security["runAsGroup"] == 10001, name
            assert security["seccompProfile"]["type"] == "RuntimeDefault", name
            assert spec["automountServiceAccountToken"] is False, name
            assert spec["serviceAccountName"] != "default", name
            assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), name
            assert all("emptyDir" in volume for volume in spec["volumes"]), name
            [container] = spec["containers"]
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False, name
            assert own["readOnlyRootFilesystem"], name
            assert own["capabilities"] == {"drop": ["ALL"]}, name
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), name
            assert "memory" in container["resources"]["limits"], name
            _, tag = container["image"].split(":")
            assert tag != "latest", name
            # Secrets come by reference only.
            assert "env" not in container, name
            if spec.get("restartPolicy") == "Never":
                continue
            assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys(), name
            assert spec["topologySpreadConstraints"], name


def test_a_policy_linter_finds_nothing_but_what_we_decided(
    renderer: Renderer, tmp_path: Path
) -> None:
    _, name = RENDERS[-1]
    answers = {**parse_combination(name).answers, "deployment": "kubernetes"}
    folder = renderer.render(answers) / "deploy"
    if not shutil.which("kubectl"):
        pytest.skip("install kubectl to have this run: its `kubectl kustomize` builds the overlays")
    manifests = build(folder / "kubernetes" / "overlays" / "production")
    (tmp_path / "manifests.yaml").write_text(yaml.safe_dump_all(manifests))
    shutil.copy(folder / "Dockerfile", tmp_path)
    run(
        *(
            os.environ.get("UV", "uv"),
            "tool",
            "run",
            "--from",
            f"checkov=={CHECKOV_VERSION}",
            "checkov",
            "--quiet",
        ),
        *("--compact", "--skip-download", "--framework", "kubernetes", "dockerfile"),
        *("--skip-check", ",".join(DECIDED_OTHERWISE), "--directory", tmp_path),
    )


def test_what_refers_to_each_other_fits(overlays: dict[str, Manifests]) -> None:
    for manifests in overlays.values():
        names = {(m["kind"], m["metadata"]["name"]) for m in manifests}
        assert len({m["metadata"]["namespace"] for m in manifests}) == 1
        labels = {name: metadata["labels"] for name, metadata, _ in pods(manifests)}
        assert ("Secret", next(iter(labels))) not in names, "a secret would be in the repository"
        for name, _, spec in pods(manifests):
            [container] = spec["containers"]
            settings, secret = container["envFrom"]
            assert ("ConfigMap", settings["configMapRef"]["name"]) in names, name
            assert secret["secretRef"]["name"], name
        for manifest in manifests:
            selector = manifest.get("spec", {}).get("selector") or manifest.get("spec", {}).get(
                "podSelector"
            )
            if selector:
                wanted = selector.get("matchLabels", selector)
                assert "app.kubernetes.io/name" in wanted, manifest["metadata"]["name"]
                assert any(wanted.items() <= each.items() for each in labels.values())


def test_no_pod_is_out_of_a_disruption_budget(overlays: dict[str, Manifests]) -> None:
    for manifests in overlays.values():
        budgets = [m for m in manifests if m["kind"] == "PodDisruptionBudget"]
        deployments = [m for m in manifests if m["kind"] == "Deployment"]
        assert len(budgets) == len(deployments)


def test_the_service_checks_what_is_computed(
    rendered_choice: Rendered, environments: Environments
) -> None:
    """Its own test and checkers, and that a changed setting changes what is computed from it."""
    choice, combination, folder = rendered_choice
    service = Service(folder, render_command(combination), environments)
    own = ["devtools/deployment.py", "tests/test_deployment.py"]
    service.run(["ruff", "check", *own])
    service.run(["ruff", "format", "--check", *own])
    service.run(["python", "-m", "devtools.deployment"])
    assert read_tree(folder).items() >= service.as_rendered.items(), "what is rendered is outdated"
    service.run(["pytest", "-n0", "-q", "-p", "no:cacheprovider", "tests/test_deployment.py"])

    settings = sorted(folder.glob("deploy/**/settings.env"))
    before = [file.read_text() for file in settings]
    for file in settings:
        file.write_text(f"{file.read_text()}SHUTDOWN_TIMEOUT_SECONDS=100\n")
    with pytest.raises(AssertionError, match=r"devtools\.deployment"):
        service.run(["pytest", "-n0", "-q", "-p", "no:cacheprovider", "tests/test_deployment.py"])
    service.run(["python", "-m", "devtools.deployment"])
    compose = yaml.safe_load((folder / "deploy" / "compose.yaml").read_text())
    drain, sends = 5, 25 if "websockets" in combination.words else 0
    assert compose["services"]["service"]["stop_grace_period"] == f"{drain + 200 + sends + 5}s"
    if choice == "kubernetes":
        base = (folder / "deploy" / "kubernetes" / "base" / "service.yaml").read_text()
        assert f"terminationGracePeriodSeconds: {10 + 200 + sends + 5} #" in base
    for file, text in zip(settings, before, strict=True):
        file.write_text(text)
    service.run(["python", "-m", "devtools.deployment"])
