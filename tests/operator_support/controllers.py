"""Metadata of pods as the controllers of groups create them: labels and owner references of their sources."""

from __future__ import annotations

from typing import Any


def owner(api_version: str, kind: str, name: str, uid: str) -> dict[str, Any]:
    """Returns the reference of a pod to its controller."""
    return {
        "apiVersion": api_version,
        "kind": kind,
        "name": name,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def replica_set_pod(name: str, uid: str) -> dict[str, Any]:
    return {
        "generateName": f"{name}-",
        "labels": {"pod-template-hash": name.rpartition("-")[2]},
        "ownerReferences": [owner("apps/v1", "ReplicaSet", name, uid)],
    }


def stateful_set_pod(name: str, uid: str, revision: str, index: int = 0) -> dict[str, Any]:
    return {
        "name": f"{name}-{index}",
        "labels": {
            "controller-revision-hash": f"{name}-{revision}",
            "statefulset.kubernetes.io/pod-name": f"{name}-{index}",
            "apps.kubernetes.io/pod-index": str(index),
        },
        "ownerReferences": [owner("apps/v1", "StatefulSet", name, uid)],
    }


def leader_pod(name: str, uid: str, revision: str, index: int = 0) -> dict[str, Any]:
    """Of a LeaderWorkerSet, before its own webhook has added ``group-index`` and ``group-key``."""
    made = stateful_set_pod(name, uid, f"s{revision}", index)
    made["labels"] |= {
        "leaderworkerset.sigs.k8s.io/name": name,
        "leaderworkerset.sigs.k8s.io/worker-index": "0",
        "leaderworkerset.sigs.k8s.io/template-revision-hash": revision,
    }
    return made


def worker_pod(name: str, uid: str, revision: str, group: int, index: int = 1) -> dict[str, Any]:
    """Of a LeaderWorkerSet. ``uid`` is that of the StatefulSet of the group's workers."""
    made = stateful_set_pod(f"{name}-{group}", uid, f"w{revision}", index)
    made["labels"] |= {
        "leaderworkerset.sigs.k8s.io/name": name,
        "leaderworkerset.sigs.k8s.io/group-index": str(group),
        "leaderworkerset.sigs.k8s.io/group-key": f"hash-of-{name}-{group}",
        "leaderworkerset.sigs.k8s.io/template-revision-hash": revision,
    }
    return made


def job_pod(name: str, uid: str) -> dict[str, Any]:
    return {
        "generateName": f"{name}-",
        "labels": {"batch.kubernetes.io/job-name": name, "batch.kubernetes.io/controller-uid": uid},
        "ownerReferences": [owner("batch/v1", "Job", name, uid)],
    }


def job_set_pod(name: str, uid: str, job: str, job_uid: str) -> dict[str, Any]:
    """Of a JobSet, also of one that a TrainJob has created: ``job`` is the name of the replicated job."""
    made = job_pod(f"{name}-{job}-0", job_uid)
    made["labels"] |= {
        "jobset.sigs.k8s.io/jobset-name": name,
        "jobset.sigs.k8s.io/jobset-uid": uid,
        "jobset.sigs.k8s.io/replicatedjob-name": job,
        "jobset.sigs.k8s.io/restart-attempt": "0",
    }
    return made


def ray_pod(name: str, uid: str, kind: str) -> dict[str, Any]:
    """Of a RayCluster; ``kind`` is ``head`` or ``worker``."""
    return {
        "generateName": f"{name}-{kind}-",
        "labels": {"ray.io/cluster": name, "ray.io/node-type": kind, "ray.io/is-ray-node": "yes"},
        "ownerReferences": [owner("ray.io/v1", "RayCluster", name, uid)],
    }


def training_pod(name: str, uid: str, replica: str, kind: str = "PyTorchJob") -> dict[str, Any]:
    """Of a job of Kubeflow's training operator."""
    return {
        "name": f"{name}-{replica}-0",
        "labels": {
            "training.kubeflow.org/job-name": name,
            "training.kubeflow.org/operator-name": f"{kind.lower()}-controller",
            "training.kubeflow.org/replica-type": replica,
            "training.kubeflow.org/replica-index": "0",
        },
        "ownerReferences": [owner("kubeflow.org/v1", kind, name, uid)],
    }
