"""What an account of the chart did and may do, as (group, resource, verb)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

from operator_support.control_plane import ROOT

if TYPE_CHECKING:
    from operator_support.control_plane import ControlPlane

Permission = tuple[str, str, str]


def granted_permissions(role: str) -> set[Permission]:
    """Returns what a role of ``operator/rbac`` grants."""
    rules = yaml.safe_load((ROOT / "operator" / "rbac" / f"{role}.yaml").read_text())["rules"]
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def used_permissions(plane: ControlPlane, account: str) -> set[Permission]:
    """Returns what an account was allowed to do so far, by the audit log; fails where something was forbidden."""
    events = plane.audit_events(account)
    forbidden = [event["requestURI"] for event in events if event["responseStatus"].get("code") == 403]
    assert not forbidden
    return {
        (
            event["objectRef"].get("apiGroup", ""),
            "/".join(part for part in (event["objectRef"]["resource"], event["objectRef"].get("subresource")) if part),
            event["verb"],
        )
        for event in events
        if event.get("objectRef", {}).get("resource")
    }
