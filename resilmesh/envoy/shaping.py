"""What a policy changes on the way, sends elsewhere or counts as success, in Envoy's words.

    headers            request_headers_to_add, ..._to_remove and the same of the response: remove, set, add, as Envoy does it
    rewrite            prefix_rewrite or regex_rewrite, host_rewrite_literal
    mirror             request_mirror_policies
    classify           other retry words, because Envoy's see every 5xx; what counts as a failure is said of the cluster
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from resilmesh.envoy.filters import millionths

if TYPE_CHECKING:
    from resilmesh.policy.model import Classify, HeaderChanges, HeaderOperations, Mirror, Rewrite

Json = dict[str, Any]

#: What a client sends of a path as it is. Envoy escapes nothing.
_URL_CHARACTERS = "".join(each for each in map(chr, range(0x21, 0x7F)) if each not in '"#<>`{}')
#: Statuses that a retry word stands for, beside what never became an answer.
_STATUSES_OF = {"5xx": range(500, 600), "gateway-error": range(502, 505)}


def header_changes(changes: HeaderChanges | None) -> Json:
    """What a route says of headers."""
    if changes is None:
        return {}
    return {**_operations("request", changes.request), **_operations("response", changes.response)}


def _operations(direction: str, operations: HeaderOperations | None) -> Json:
    if operations is None:
        return {}
    put = [
        {
            # Two percent signs are one; a single one begins a variable.
            "header": {"key": name, "value": value.replace("%", "%%")}, "append_action": action, "keep_empty_value": True,
        }
        for action, headers in (("OVERWRITE_IF_EXISTS_OR_ADD", operations.set), ("APPEND_IF_EXISTS_OR_ADD", operations.add))
        for name, value in (headers or {}).items()
    ]
    made: Json = {}
    if put:
        made[f"{direction}_headers_to_add"] = put
    if operations.remove:
        made[f"{direction}_headers_to_remove"] = list(operations.remove)
    return made


def rewrite(block: Rewrite | None) -> Json:
    """What a route's action says of path and host."""
    made: Json = {}
    if block is None:
        return made
    if block.path is not None:
        made["prefix_rewrite"] = quote(block.path, safe=_URL_CHARACTERS)
    if block.path_regex is not None:
        made["regex_rewrite"] = {
            "pattern": {"regex": block.path_regex.match}, "substitution": quote(block.path_regex.rewrite, safe=_URL_CHARACTERS),
        }
    if block.host is not None:
        made["host_rewrite_literal"] = block.host
    return made


def mirror(block: Mirror, cluster: str) -> Json:
    """What a route's action says of copies, which go to ``cluster``."""
    return {"request_mirror_policies": [{"cluster": cluster, "runtime_fraction": {"default_value": millionths(block.percent)}}]}


def retried(words: Sequence[str], statuses: Sequence[int], classify: Classify | None) -> tuple[Sequence[str], Sequence[int]]:
    """Retry words and statuses, where a word such as ``5xx`` must not mean a status that counts as success."""
    named = {status for word in words for status in _STATUSES_OF.get(word, ())}
    meant = named.difference((classify and classify.success_statuses) or ())
    if meant == named:
        return words, statuses
    # Where there is no answer, either word means any reset.
    return list(dict.fromkeys("reset" if word in _STATUSES_OF else word for word in words)), sorted(meant.union(statuses))
