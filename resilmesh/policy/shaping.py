"""Blocks about what is sent and what comes back over HTTP: headers, rewrites, copies, fallbacks, what counts as a failure.

They hang on ``resilmesh.policy.model``, which says at which levels each may stand.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from resilmesh.policy.fields import Block, Name, Percent, approximates, field, library_only, maps_to, shaped
from resilmesh.policy.matching import HeaderName, ShortString

#: What clients agree to send: h11 refuses the request otherwise, call by call.
HeaderValue = Annotated[str, shaped(
    "a header value on one line, without control characters and without blanks around it",
    r"^([^\x00-\x20\x7f]([^\x00-\x08\x0a-\x1f\x7f]*[^\x00-\x20\x7f])?)?$", max_length=8192,
)]
Status = Annotated[int, Field(ge=200, le=599)]

NO_FALLBACK = library_only("Envoy has no fallback.")
_ERROR_MATCHER = "HttpProtocolOptions.outlier_detection.error_matcher"


class HeaderOperations(Block):
    """Changes to the headers of one direction, in the order remove, set, add. A value is sent as it is written."""

    set: dict[HeaderName, HeaderValue] | None = field(
        "Replaces a header, or adds it.", None, envoy=maps_to("headers_to_add OVERWRITE_IF_EXISTS_OR_ADD"),
    )
    add: dict[HeaderName, HeaderValue] | None = field(
        "Adds a value beside those that are there.", None, envoy=maps_to("headers_to_add APPEND_IF_EXISTS_OR_ADD"),
    )
    remove: list[HeaderName] | None = field("Takes headers away.", None, envoy=maps_to("headers_to_remove"), min_length=1)


class HeaderChanges(Block):
    """Header changes, once per call: a retry sends the same. Istio's ``headers``.

    Answers that are made here (rejections, time-outs, faults, fallbacks) are not changed.
    """

    request: HeaderOperations | None = field("On what the service gets.", None, envoy=maps_to("route.request_headers_to_add/remove"))
    response: HeaderOperations | None = field(
        "On what the caller gets.", None,
        envoy=approximates(
            "route.response_headers_to_add/remove", "Envoy changes its own answers too: rejections, time-outs, faults, failed connections.",
        ),
    )


class PathRegexRewrite(Block):
    """Replaces what a regular expression finds in the path."""

    match: str = field("RE2 expression, searched for in the path without the query.", envoy=maps_to("regex_rewrite.pattern"), min_length=1)
    rewrite: str = field(
        "What takes the place of every find; \\\\1 is the first group. A path that then begins without a slash gets one; . and .. in it "
        "are resolved.",
        envoy=approximates(
            "regex_rewrite.substitution",
            "A path that then begins without a slash, or holds . or .., is sent so by Envoy, and an empty one not at all: the caller's is.",
        ),
    )


class Rewrite(Block):
    """What the service sees in place of the path and host the caller wrote. ``path`` or ``pathRegex``, not both.

    TLS goes on to prove the host that the caller wrote.
    """

    path: Annotated[str, shaped("a path, which begins with /", "^/", max_length=8192)] | None = field(
        "Replaces what the route's path condition matched: the whole of an exact path or of a regex, or the prefix. "
        "Without a path condition, the first slash. The query stays.", None,
        envoy=maps_to("route.prefix_rewrite"),
    )
    path_regex: PathRegexRewrite | None = field("Replaces by regular expression.", None, envoy=maps_to("route.regex_rewrite"))
    host: Annotated[str, shaped("a host name with or without a port", r"^[A-Za-z0-9._:\[\]-]+$", max_length=259)] | None = field(
        "Replaces the Host header.", None, envoy=maps_to("route.host_rewrite_literal"),
    )


class Mirror(Block):
    """Sends a copy of a call to another service, once per call; the caller never waits for it or sees its answer.

    Its Host gets ``-shadow`` behind the name. The copy has the other service's endpoints, balancer, outlier detection and
    concurrency limit, and the call's own timeout; it is not retried, not throttled, and asks no circuit.
    """

    service: Name = field(
        "Name of the service that gets the copy.",
        envoy=approximates(
            "request_mirror_policies.cluster",
            "Envoy copies a call with a streamed body, such as a generator; the library sends no copy of one. "
            "Without a timeout a copy may take 15 s in the library, in Envoy for ever.",
        ),
    )
    subset: Name | None = field(
        "A subset of it.", None,
        envoy=approximates(
            "request_mirror_policies.cluster",
            "The subset is a cluster of its own in Envoy, with ejections and a concurrency limit of its own.",
        ),
    )
    percent: Percent = field("Share of calls.", 100.0, envoy=maps_to("request_mirror_policies.runtime_fraction"), unit="percent")


class Fallback(Block):
    """A static answer in place of an error. HTTP only: a guarded function has ``fallback=`` in code.

    What happened is counted as what it was: a fallback makes no success of a failure.
    """

    on: Annotated[list[Literal["REJECTED", "DEADLINE", "FAILURE"]], Field(min_length=1)] = field(
        "REJECTED: nothing was sent. DEADLINE: the time of the call, or of its last try, is over. FAILURE: the last attempt failed. "
        "Absent: all three.",
        envoy=NO_FALLBACK, factory=lambda: ["REJECTED", "DEADLINE", "FAILURE"],
    )
    status: Status = field("Status of the answer.", 200, envoy=NO_FALLBACK)
    headers: dict[HeaderName, HeaderValue] | None = field("Headers of the answer.", None, envoy=NO_FALLBACK)
    body: str = field("Body of the answer.", "", envoy=NO_FALLBACK, max_length=65536)


class Classify(Block):
    """Which answers count as failures towards circuit breakers, outlier detection and fallbacks.

    A retry is still a matter of ``retryOn``: a status that counts as failure is repeated where its number is listed, and one
    that counts as success where its number is, not where a word such as ``5xx`` is.
    """

    failure_statuses: list[Annotated[int, Field(ge=100, le=599)]] | None = field(
        "Statuses that count as failure, beside 5xx.", None, envoy=maps_to(_ERROR_MATCHER), min_length=1,
    )
    success_statuses: list[Annotated[int, Field(ge=500, le=599)]] | None = field(
        "5xx statuses that do not count as failure.", None, envoy=maps_to(f"{_ERROR_MATCHER}; retry_policy.retry_on"), min_length=1,
    )
    failure_headers: dict[HeaderName, ShortString] | None = field(
        "Response headers of which one makes the answer a failure.", None, envoy=maps_to(_ERROR_MATCHER), min_length=1,
    )
