"""A new root without a moment at which somebody is not trusted: three steps, each of which refuses to come too early.

    steady ──announce──> announced ──activate──> overlap ──retire──> steady
             a new root            the new root           the old root
             is trusted            signs, the old         is trusted
             and signs nothing     one is still trusted   no more

* Activating waits until every certificate from before the announcement has ended or been renewed, since a bundle comes with each:
  then whoever has a certificate knows the new root.
* Retiring waits until the last certificate below the old root has ended.
"""

from __future__ import annotations

import datetime
from typing import Any

from resilmesh.identity.ca_change import Change
from resilmesh.identity.ca_store import State, to_text
from resilmesh.identity.spiffe import IdentityError


def announce(change: Change) -> dict[str, Any]:
    """Make the next root, and have it trusted. Returns what is to be recorded. Raises ``IdentityError``."""
    state = change.state
    if state.root_in("announced") or state.root_in("old"):
        raise IdentityError(f"a rotation is under way; next: {next_step(state, change.where)}")
    until = last_leaf(state, {each.name for each in state.trusted})
    new = change.add_root("announced")
    new.known_to_all = max(until, to_text(change.now))
    return {"action": "announce-root", "root": new.name}


def activate(change: Change, *, force: bool) -> dict[str, Any]:
    """Sign by the announced root. As ``announce``."""
    state = change.state
    new, old = state.root_in("announced"), state.root_in("active")
    if new is None or old is None:
        raise IdentityError(f"no root is announced; next: {next_step(state, change.where)}")
    if (new.known_to_all or "") > to_text(change.now) and not force:
        raise IdentityError(
            f"certificates that came without {new.name} in their bundle are good until {new.known_to_all}, and who has one may not trust "
            "it yet: activate it then (or now, with --force, if the old root's key is in wrong hands)"
        )
    new.phase, old.phase = "active", "old"
    new.since = old.since = to_text(change.now)
    made = change.add_intermediate(new)
    return {"action": "activate-root", "root": new.name, "old": old.name, "intermediate": made.name}


def retire(change: Change, *, force: bool) -> dict[str, Any]:
    """Trust the old root no more. As ``announce``."""
    state = change.state
    old = state.root_in("old")
    if old is None:
        raise IdentityError(f"there is no old root to retire; next: {next_step(state, change.where)}")
    until = last_leaf(state, {old.name})
    if until > to_text(change.now) and not force:
        raise IdentityError(
            f"a certificate below {old.name} may be good until {until}: retire it then (or now, with --force, which cuts off whoever has "
            "one)"
        )
    old.phase, old.since = "retired", to_text(change.now)
    return {"action": "retire-root", "root": old.name}


def renew_intermediate(change: Change) -> dict[str, Any]:
    """A new intermediate below the same root, at once: its certificate is sent along with each leaf. As ``announce``."""
    root = change.state.root_in("active")
    assert root is not None, "one is always active"
    ends = change.keys.certificate(root.name).not_valid_after_utc
    if ends - change.now < datetime.timedelta(days=1):
        raise IdentityError(f"the root ends at {to_text(ends)}, and with it all below it: resilmesh ca rotate {change.where}")
    before = change.state.active.name
    made = change.add_intermediate(root)
    return {"action": "renew-intermediate", "intermediate": made.name, "before": before, "root": root.name}


def last_leaf(state: State, roots: set[str]) -> str:
    """When the last leaf below some roots ends, at the latest."""
    return max((each.issued_until for each in state.intermediates if each.root in roots), default="")


def next_step(state: State, where: str) -> str:
    """What to do next, and when."""
    new, old = state.root_in("announced"), state.root_in("old")
    if new is not None:
        return f"resilmesh ca rotate {where} --activate, from {new.known_to_all} on"
    if old is not None:
        return f"resilmesh ca rotate {where} --retire, from {last_leaf(state, {old.name})} on"
    return f"resilmesh ca rotate {where}, when the root is to be replaced"
