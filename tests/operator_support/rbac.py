"""Permissions that a role grants and that a service account used, as (API group, resource, verb)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

from support.repository import ROOT

if TYPE_CHECKING:
    from operator_support.control_plane import ControlPlane

Permission = tuple[str, str, str]


def granted_permissions(role: str) -> set[Permission]:
    """Returns the permissions of a role of ``operator/rbac``."""
    rules = yaml.safe_load((ROOT / "operator" / "rbac" / f"{role}.yaml").read_text())["rules"]
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def used_permissions(plane: ControlPlane, account: str) -> set[Permission]:
    """Returns the permissions that an account of the operator's namespace has used, from the audit log.

    A server-side apply that created its object needs ``create`` besides ``patch``.

    Raises:
        AssertionError: A request was forbidden.
    """
    used: set[Permission] = set()
    forbidden = []
    for event in plane.audit_events(account):
        code = event["responseStatus"].get("code")
        if code == 403:
            forbidden.append(f"{event['verb']} {event['requestURI']}")
        target = event.get("objectRef", {})
        if "resource" not in target:
            continue  # discovery
        resource = "/".join(part for part in (target["resource"], target.get("subresource")) if part)
        used.add((target.get("apiGroup", ""), resource, event["verb"]))
        if event["verb"] == "patch" and code == 201:
            used.add((target.get("apiGroup", ""), resource, "create"))
    assert not forbidden
    return used
