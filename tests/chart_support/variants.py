"""Combinations of the chart's values; tests check the same properties for each."""

from __future__ import annotations

from typing import Any

DIGEST = "sha256:" + "0123456789abcdef" * 4
PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"

_SCHEDULING_VALUES: dict[str, Any] = {
    "annotations": {"example.com/of": "deployment"},
    "podAnnotations": {"example.com/of": "pod"},
    "podLabels": {"example.com/team": "ml"},
    "nodeSelector": {"example.com/pool": "system"},
    "tolerations": [{"key": "example.com/only", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Exists"}]}]
            }
        }
    },
    "priorityClassName": "system-cluster-critical",
    "extraEnv": [{"name": "A", "value": "b"}, {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
    "extraEnvFrom": [{"configMapRef": {"name": "more"}}],
    "extraVolumes": [{"name": "more", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
    "service": {"annotations": {"example.com/of": "service"}},
    "serviceAccount": {"annotations": {"example.com/of": "account"}},
    "logLevel": "debug",
    "logFormat": "text",
}

_NOT_OF_THE_GATE = {"service", "extraVolumes", "extraVolumeMounts"}

VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "registry and digests": {
        "image": {
            "registry": "registry.example.com:5000/ml/",
            "pullPolicy": "Always",
            "pullSecrets": ["login"],
            "operator": {"digest": DIGEST},
            "loader": {"repository": "other/loader", "tag": "1.2.3"},
        },
        "global": {"imagePullSecrets": ["parent"]},
    },
    "scheduling": {
        "controller": _SCHEDULING_VALUES,
        "webhook": {**_SCHEDULING_VALUES, "replicas": 3, "podDisruptionBudget": {"maxUnavailable": "34%"}},
        "nodeSelector": {"general": "yes"},
        "tolerations": [{"operator": "Exists"}],
        "priorityClassName": "system-node-critical",
        "commonLabels": {"example.com/cost": "center"},
        "commonAnnotations": {"example.com/owner": "ml"},
    },
    "one webhook, custom spread": {
        "webhook": {
            "replicas": 1,
            "failurePolicy": "Ignore",
            "timeoutSeconds": 10,
            "drainSeconds": 0,
            "excludedNamespaces": [],
            "namespaceSelector": [{"key": "models", "operator": "Exists"}],
            "objectSelector": [{"key": "app", "operator": "In", "values": ["server"]}],
            "topologySpreadConstraints": [
                {"topologyKey": "a", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}
            ],
        }
    },
    "client certificate": {"webhook": {"clientCA": PEM, "clientNames": ["kube-apiserver", "api server"]}},
    "policy": {"policy": {"enabled": True, "capabilities": ["IPC_LOCK"], "loaderEnvironment": ["HTTPS_PROXY"]}},
    "gate": {"gate": {"enabled": True, "taints": ["tonnage.dev/not-warm", "example.com/new"], "replicas": 2}},
    "gate by condition": {
        "gate": {
            **{key: value for key, value in _SCHEDULING_VALUES.items() if key not in _NOT_OF_THE_GATE},
            "enabled": True,
            "mode": "Condition",
        }
    },
    "memory only, reserved": {
        "cache": {
            "sharing": "Cluster",
            "memory": {
                "hostPath": "/mnt/huge/tonnage",
                "reserved": True,
                "minFree": "16Gi",
                "capacity": 400_000_000_000,
                "namespaceCapacity": "200Gi",
                "maxEntrySize": "150Gi",
            },
            "highWatermarkPercent": 95,
            "lowWatermarkPercent": 70,
            "disk": {"enabled": False},
        }
    },
    "no host paths": {"cache": {"memory": {"enabled": False}, "disk": {"enabled": False}}},
    "disk by default": {
        "cache": {"defaultMedium": "Disk"},
        "loader": {
            "uid": 1000,
            "memoryOverhead": "1Gi",
            "serviceAccountName": "models",
            "resources": {"requests": {"cpu": 2}, "limits": {"memory": "8Gi"}},
        },
        "cleanup": {"tolerateAll": False, "serviceAccount": {"create": False}},
        "retry": {"baseSeconds": 1.5, "capSeconds": 60},
    },
    "no reports": {"reports": {"enabled": False}},
    "no DNS": {"controller": {"service": {"clusterIP": "10.0.0.50"}}, "reports": {"host": "10.0.0.50"}},
    "own certificates": {
        "certificates": {
            "mode": "Secret",
            "secret": {
                "webhook": {"name": "my-webhook", "caBundle": PEM},
                "reports": {"name": "my-reports", "caBundle": PEM},
            },
        }
    },
    "cert-manager": {"certificates": {"mode": "CertManager"}},
    "cert-manager, existing issuer": {
        "certificates": {"mode": "CertManager", "certManager": {"issuerRef": {"name": "corp", "kind": "ClusterIssuer"}}}
    },
    "restricted network": {
        "networkPolicy": {
            "enabled": True,
            "apiServer": {"cidrs": ["10.0.0.1/32", "fd00::1/128"], "ports": [6443]},
            "webhookFrom": [{"ipBlock": {"cidr": "10.1.0.0/16"}}],
            "reportsFrom": [{"podSelector": {}}],
            "metricsFrom": [{"namespaceSelector": {"matchLabels": {"a": "b"}}}],
        }
    },
    "peers": {"peers": {"enabled": True}, "networkPolicy": {"enabled": True}},
    "peers on the host": {
        "peers": {
            "enabled": True,
            "port": 9000,
            "connections": 64,
            "connectionsPerLoader": 8,
            "connectionBandwidth": "100Mi",
            "network": "HostNetwork",
            "maxUnavailable": 3,
            "nodeSelector": {"example.com/gpu": "yes"},
            "tolerations": [{"key": "example.com/only", "operator": "Exists"}],
            "priorityClassName": "system-node-critical",
            "serviceAccount": {"create": False, "name": "mine"},
            "podLabels": {"example.com/team": "ml"},
        },
        "cache": {"defaultMedium": "Disk", "memory": {"enabled": False}},
        "networkPolicy": {"enabled": True, "peersFrom": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]},
        "loader": {"seLinuxOptions": {"type": "spc_t"}},
        "fullnameOverride": "weights",
    },
    "open network policies": {"networkPolicy": {"enabled": True}},
    "monitored": {
        "metrics": {
            "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}, "namespace": "monitoring"},
            "prometheusRule": {"enabled": True, "alertLabels": {"team": "ml"}},
        }
    },
    "wiped on uninstall": {"uninstall": {"policy": "Wipe"}, "crds": {"keep": False}},
    "programs only": {
        "crds": {"enabled": False},
        "rbac": {"create": False, "aggregate": False},
        "uninstall": {"hook": False},
        "controller": {"serviceAccount": {"create": False, "name": "mine"}},
    },
    "users of the platform's choice": {
        "podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None},
    },
    "renamed": {"fullnameOverride": "a-very-long-name-for-an-installation-of-this", "nameOverride": "weights"},
}
