"""Kubernetes' objects, as far as ours go: which fields there are, and which must be there.

A schema is a dictionary; a key that ends with `!` must be said. `[schema]` is a list of it, a type is a scalar, MAP is
any mapping of strings. What is in none is a mistake: of ours, or of this file's.
"""

from collections.abc import Iterator, Mapping
from typing import Any

MAP = Mapping[str, str]

_EXEC = {"exec!": {"command!": [str]}}
_PROBE = {**_EXEC, "periodSeconds!": int, "timeoutSeconds!": int, "failureThreshold!": int}
_META = {"name!": str, "namespace": str, "labels": MAP}
_SELECTOR = {"matchLabels!": MAP}
_CONTAINER = {
    "name!": str,
    "image!": str,
    "args": [str],
    "ports": [{"name!": str, "containerPort!": int, "hostPort": int}],
    "securityContext!": {
        "runAsUser": int,
        "runAsGroup": int,
        "allowPrivilegeEscalation!": bool,
        "readOnlyRootFilesystem!": bool,
        "capabilities!": {"drop!": [str], "add": [str]},
    },
    "resources!": {"requests!": MAP, "limits!": MAP},
    "startupProbe!": _PROBE,
    "readinessProbe!": _PROBE,
    "livenessProbe!": _PROBE,
    "lifecycle": {"preStop!": _EXEC},
    "volumeMounts": [{"name!": str, "mountPath!": str, "readOnly": bool}],
}
_ITEMS = [{"key!": str, "path!": str, "mode": int}]
_VOLUME = {
    "name!": str,
    "configMap": {"name!": str},
    "emptyDir": {"medium": str, "sizeLimit!": str},
    "projected": {"sources!": [{"configMap": {"name!": str}, "secret": {"name!": str, "items": _ITEMS}}]},
}
_POD = {
    "serviceAccountName!": str,
    "automountServiceAccountToken!": bool,
    "enableServiceLinks": bool,
    "hostNetwork": bool,
    "dnsPolicy": str,
    "nodeSelector": MAP,
    "tolerations": [{"key!": str, "operator!": str}],
    "priorityClassName": str,
    "terminationGracePeriodSeconds!": int,
    "securityContext!": {
        "runAsNonRoot": bool,
        "runAsUser": int,
        "runAsGroup": int,
        "fsGroup": int,
        "seccompProfile!": {"type!": str},
    },
    "topologySpreadConstraints": [
        {"maxSkew!": int, "topologyKey!": str, "whenUnsatisfiable!": str, "labelSelector!": _SELECTOR}
    ],
    "containers!": [_CONTAINER],
    "volumes": [_VOLUME],
}
_TEMPLATE = {"metadata!": {"labels!": MAP}, "spec!": _POD}
_PORTS = [{"port!": (int, str), "protocol!": str}]
_PEERS = [
    {"ipBlock": {"cidr!": str}, "namespaceSelector": _SELECTOR, "podSelector": _SELECTOR},
]

KINDS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "Namespace": ("v1", {}),
    "ServiceAccount": ("v1", {"automountServiceAccountToken!": bool}),
    "ConfigMap": ("v1", {"data!": MAP}),
    "Secret": ("v1", {"type!": str, "stringData!": MAP}),
    "Deployment": (
        "apps/v1",
        {
            "spec!": {
                "replicas!": int,
                "selector!": _SELECTOR,
                "strategy": {"rollingUpdate!": {"maxSurge!": int, "maxUnavailable!": int}},
                "template!": _TEMPLATE,
            }
        },
    ),
    "DaemonSet": (
        "apps/v1",
        {
            "spec!": {
                "selector!": _SELECTOR,
                "updateStrategy": {"rollingUpdate!": {"maxUnavailable!": int}},
                "template!": _TEMPLATE,
            }
        },
    ),
    "Service": (
        "v1",
        {
            "spec!": {
                "type!": str,
                "externalTrafficPolicy": str,
                "ipFamilyPolicy": str,
                "selector!": MAP,
                "ports!": [{"name!": str, "port!": int, "targetPort!": (int, str)}],
            }
        },
    ),
    "PodDisruptionBudget": ("policy/v1", {"spec!": {"minAvailable!": int, "selector!": _SELECTOR}}),
    "NetworkPolicy": (
        "networking.k8s.io/v1",
        {
            "spec!": {
                "podSelector!": _SELECTOR,
                "policyTypes!": [str],
                "ingress": [{"from!": _PEERS, "ports!": _PORTS}],
                "egress": [{"to!": _PEERS, "ports!": _PORTS}],
            }
        },
    ),
}


def mistakes(thing: Mapping[str, Any]) -> list[str]:
    """What is wrong with an object."""
    kind = thing.get("kind", "")
    if kind not in KINDS:
        return [f"no kind {kind!r}"]
    version, schema = KINDS[kind]
    whole = {"apiVersion!": str, "kind!": str, "metadata!": _META, **schema}
    wrong = [] if thing.get("apiVersion") == version else [f"{kind}: apiVersion is not {version}"]
    return wrong + list(_wrong(thing, whole, kind))


def _wrong(value: Any, schema: Any, where: str) -> Iterator[str]:
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            yield f"{where}: no mapping"
            return
        known = {key.rstrip("!"): inner for key, inner in schema.items()}
        yield from (f"{where}.{key} is unknown" for key in value.keys() - known.keys())
        must = {key[:-1] for key in schema if key.endswith("!")}
        yield from (f"{where}.{key} is missing" for key in must - value.keys())
        for key in value.keys() & known.keys():
            yield from _wrong(value[key], known[key], f"{where}.{key}")
    elif isinstance(schema, list):
        if not isinstance(value, list) or not value:
            yield f"{where}: no list, or an empty one"
            return
        for at, one in enumerate(value):
            yield from _wrong(one, schema[0], f"{where}[{at}]")
    elif schema is MAP:
        if not isinstance(value, dict) or not all(isinstance(word, str) for pair in value.items() for word in pair):
            yield f"{where}: no mapping of strings"
    elif isinstance(value, bool) is not (schema is bool) or not isinstance(value, schema):
        yield f"{where}: {value!r} is of another type"
