"""deploy/kubernetes: the manifests are objects that there are, fit together, and their pods run as they say; without a
cluster."""

import copy
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from smtpproxy.cli import cli
from smtpproxy.config import Config, load_config
from smtpproxy.tls.minting import likeness_of, self_signed
from tests.deploy.kubernetes import mistakes
from tests.deploy.rig import CONFIG, DEPLOY, LOG, PROGRAM, systemd
from tests.deploy.test_container import DOCKERFILE

FILES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
MANIFESTS = {path.name: list(yaml.safe_load_all(path.read_text(encoding="utf-8"))) for path in FILES}
NET_RAW = 1 << 13


def _of(file: str, kind: str) -> Any:
    (found,) = [thing for thing in MANIFESTS[file] if thing["kind"] == kind]
    return found


def _workload(file: str) -> Any:
    (found,) = [thing for thing in MANIFESTS[file] if thing["kind"] in ("Deployment", "DaemonSet")]
    return found


def _pod(file: str) -> Any:
    return _workload(file)["spec"]["template"]["spec"]


def _container(file: str) -> Any:
    (found,) = _pod(file)["containers"]
    return found


def _files(file: str) -> dict[str, str]:
    """What the pod's volumes hold, by path; the certificate is one."""
    leaf = self_signed(likeness_of("mx.example", time.time()), time.time(), 30)
    things = {
        "configMap": _of(file, "ConfigMap")["data"],
        "secret": {"tls.crt": leaf.chain.decode(), "tls.key": leaf.key.decode()},
    }
    where = {mount["name"]: mount["mountPath"] for mount in _container(file)["volumeMounts"]}
    found: dict[str, str] = {}
    for volume in _pod(file)["volumes"]:
        sources = volume.get("projected", {}).get("sources", [volume])
        for source in sources:
            for kind, contents in things.items():
                for key in contents if kind in source else ():
                    paths = {item["key"]: item["path"] for item in source[kind].get("items", ())}
                    found[f"{where[volume['name']]}/{paths.get(key, key)}"] = contents[key]
    return found


@pytest.fixture
def configured(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Config]:
    """A manifest, and its configuration with the files it names."""
    file: str = request.param
    for path, text in _files(file).items():
        target = tmp_path / path.removeprefix("/etc/smtpproxy/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        target.chmod(0o440)
    result = CliRunner().invoke(cli, ["check", "--config", str(tmp_path / "smtpproxy.toml")])
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    assert "warning" not in result.output
    return file, load_config(tmp_path / "smtpproxy.toml")


each = pytest.mark.parametrize("file", MANIFESTS)
each_configured = pytest.mark.parametrize("configured", MANIFESTS, indirect=True)


@each
def test_they_are_objects_of_kinds_that_there_are(file: str) -> None:
    assert [mistake for thing in MANIFESTS[file] for mistake in mistakes(thing)] == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("apiVersion",), "v1"),
        (("spec", "template", "spec", "containers", 0, "securityContext", "capabilties"), {}),
        (("spec", "template", "spec", "terminationGracePeriodSeconds"), "60"),
        (("spec", "template", "spec", "containers", 0, "args", 0), True),
        (("spec", "template", "spec", "containers"), []),
        (("spec", "selector", "matchLabels"), {"a": 1}),
    ],
)
def test_a_mistake_would_be_seen(path: tuple[Any, ...], value: Any) -> None:
    thing = copy.deepcopy(_of("behind-balancer.yaml", "Deployment"))
    place = thing
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert len(mistakes(thing)) == 1


@each
def test_what_they_name_is_there(file: str) -> None:
    """In one namespace: labels that are selected, accounts, volumes for what is mounted, ports by name."""
    things = MANIFESTS[file]
    (namespace,) = {thing["metadata"].get("namespace", thing["metadata"]["name"]) for thing in things}
    assert _of(file, "Namespace")["metadata"]["name"] == namespace
    workload, pod, container = _workload(file), _pod(file), _container(file)
    labels = workload["spec"]["template"]["metadata"]["labels"]
    selectors = [workload["spec"]["selector"]["matchLabels"]]
    for thing in things:
        spec = thing.get("spec", {})
        selectors += [spec["podSelector"]["matchLabels"]] if "podSelector" in spec else []
        selectors += [spec["selector"].get("matchLabels", spec["selector"])] if "selector" in spec else []
    assert all(selector.items() <= labels.items() for selector in selectors)
    assert pod["serviceAccountName"] == _of(file, "ServiceAccount")["metadata"]["name"]
    mounted = sorted(mount["name"] for mount in container["volumeMounts"])
    assert mounted == sorted(volume["name"] for volume in pod["volumes"])
    paths = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert not any(inner.startswith(f"{outer}/") for inner in paths for outer in paths), "a mount in a read-only one"
    names = {port["name"] for port in container["ports"]}
    for thing in things:
        if thing["kind"] == "Service":
            assert {port["targetPort"] for port in thing["spec"]["ports"]} <= names
    for volume in pod["volumes"]:
        for source in volume.get("projected", {}).get("sources", [volume]):
            for kind, name in (("configMap", "ConfigMap"), ("secret", "Secret")):
                if kind in source:
                    assert _of(file, name)["metadata"]["name"] == source[kind]["name"]


@each_configured
def test_pod_and_configuration_fit_together(configured: tuple[str, Config]) -> None:
    file, config = configured
    container = _container(file)
    assert re.fullmatch(r"smtpproxy:\d+\.\d+\.\d+", container["image"]), "a version, and no place it comes from"
    assert CONFIG in container["args"]
    assert CONFIG in _files(file)
    ports = {port["containerPort"] for port in container["ports"]}
    assert {listener.listen.port for listener in config.listeners} == ports
    before = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["", "0"])
    assert _pod(file)["terminationGracePeriodSeconds"] >= int(before[1]) + config.patience_table().drain + 10
    writable = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
    assert str(Path(config.process.control).parent) in writable
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["exec"]["command"] == [
            PROGRAM,
            "status",
            "--check",
            "--control",
            config.process.control,
        ]
        assert container[probe]["timeoutSeconds"] > 5, "as long as the supervisor may take to answer"


def test_behind_a_load_balancer_nobody_else_is_believed() -> None:
    file = "behind-balancer.yaml"
    said = _of(file, "ConfigMap")["data"]["smtpproxy.toml"]
    (trusted,) = re.findall(r'^proxy_from = \["(.*?)"\]', said, re.M)
    (ingress,) = _of(file, "NetworkPolicy")["spec"]["ingress"]
    assert [peer["ipBlock"]["cidr"] for peer in ingress["from"]] == [trusted]
    assert _of(file, "Service")["spec"]["externalTrafficPolicy"] == "Local"
    assert _of(file, "PodDisruptionBudget")["spec"]["minAvailable"] < _workload(file)["spec"]["replicas"]


def test_behind_a_load_balancer_it_is_restricted() -> None:
    """What Kubernetes' own "restricted" level asks for, by which the namespace is labelled."""
    pod, container = _pod("behind-balancer.yaml"), _container("behind-balancer.yaml")
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "hostNetwork" not in pod


def test_in_the_path_it_has_the_nodes_network_and_no_way_to_change_it() -> None:
    container = _container("in-path.yaml")["securityContext"]
    assert _pod("in-path.yaml")["hostNetwork"] is True
    assert container["capabilities"]["drop"] == ["ALL"]
    assert "NET_ADMIN" not in container["capabilities"]["add"]
    assert container["allowPrivilegeEscalation"] is False
    assert container["readOnlyRootFilesystem"] is True


def _unit(file: str) -> str:
    """A unit that is as its container: the same user, capabilities, root and writable places."""
    pod, container = _pod(file), _container(file)
    context = {**pod["securityContext"], **container["securityContext"]}
    capabilities = " ".join(f"CAP_{name}" for name in context["capabilities"].get("add", ()))
    writable = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
    return f"""
[Unit]
DefaultDependencies=no
[Service]
Type=exec
ExecStart={PROGRAM} {" ".join(container["args"])}
User={context["runAsUser"]}
Group={context["runAsGroup"]}
SupplementaryGroups={context["fsGroup"]}
CapabilityBoundingSet={capabilities}
NoNewPrivileges=yes
ProtectSystem=strict
ReadWritePaths={" ".join(writable)}
StandardOutput=append:{LOG}
StandardError=append:{LOG}
"""


@each
def test_a_container_starts_with_what_it_is_given(file: str) -> None:
    """And is found well by its own probe; workers have what the mode needs, and are not root."""
    with systemd() as host:
        for made in [
            one.words for one in DOCKERFILE if one.name == "RUN" and re.match(r'\["(user|group)add"', one.rest)
        ]:
            host.run(*made)
        for path, text in _files(file).items():
            host.write(path, text, mode=0o440)
        host.run("sh", "-c", "chgrp -R 65532 /etc/smtpproxy && install -d -m 2777 -g 65532 /run/smtpproxy")
        host.write("/run/units/pod.service", _unit(file))
        host.run("systemctl", "daemon-reload")
        host.run("systemctl", "start", "pod")
        user: Mapping[str, Any] = _pod(file)["securityContext"] | _container(file)["securityContext"]
        asked = _container(file)["startupProbe"]["exec"]["command"]
        us = ["setpriv", f"--reuid={user['runAsUser']}", "--regid=65532", "--clear-groups", "--bounding-set=-all"]
        host.until(lambda: host.run(*us, *asked, fails=None).startswith("ok"))
        workers = host.status()["workers"]
        assert workers
        for worker in workers:
            said = host.process(worker["pid"])
            assert said["Uid"].split() == ["65532"] * 4
            assert int(said["CapEff"], 16) == int(said["CapPrm"], 16) == (NET_RAW if file == "in-path.yaml" else 0)
        host.run("systemctl", "stop", "pod")
        assert host.show("Result", unit="pod") == {"Result": "success"}
