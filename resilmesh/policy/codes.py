"""Every diagnostic a policy can earn, with its stable code. The reference page is generated from this table.

A code never changes its meaning and is never used again for another one. RM0xx: the text cannot be read.
RM1xx: it does not fit the model. RM2xx: it fits but contradicts itself. RM301 was for blocks
that an early version did not enforce. RM4xx: warnings, about what is allowed and dangerous or without effect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One mistake or danger at one place of a policy. Lines and columns count from 1; line 0: no place is known."""

    file: str
    line: int
    column: int
    code: str
    message: str
    hint: str = ""
    severity: Severity = "error"

    def __post_init__(self) -> None:
        # They quote the file, which may hold an escape sequence for the terminal, or a character that turns the line around.
        object.__setattr__(self, "message", _printable(self.message))
        object.__setattr__(self, "hint", _printable(self.hint))

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        hint = f" ({self.hint})" if self.hint else ""
        return f"{place}: {self.code} {self.message}{hint}"


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


@dataclass(frozen=True, slots=True)
class Code:
    """A row of the table: what earns this code, and what to do about it."""

    code: str
    title: str
    meaning: str
    remedy: str

    @property
    def severity(self) -> Severity:
        return "warning" if self.code.startswith("RM4") else "error"


#: The table, by code.
CODES: dict[str, Code] = {}


def _code(code: str, title: str, meaning: str, remedy: str) -> Code:
    if code in CODES:
        raise ValueError(f"{code} is taken")
    CODES[code] = row = Code(code, title, meaning, remedy)
    return row


# ------------------------------------------------------------------------------- RM0xx: reading the text

UNREADABLE = _code(
    "RM001", "The file cannot be read", "The operating system refused to open or read it.",
    "Check the path and its permissions.",
)
NOT_UTF8 = _code(
    "RM002", "The file is not UTF-8 text", "It is binary, or text in another encoding such as UTF-16 or Latin-1.",
    "Save it as UTF-8.",
)
TOO_LARGE = _code(
    "RM003", "The file is too large", "A policy may have 8 MiB and three million keys and values.", "Split the policy by workload.",
)
EMPTY = _code(
    "RM004", "The file is empty", "It holds no document, or nothing but comments.",
    "The shortest policy is `apiVersion: resilmesh/v1`.",
)
SYNTAX = _code(
    "RM005", "Not YAML", "The text is neither YAML nor JSON. Nothing behind this place was read.",
    "Look at the indentation, brackets and quotes at and before this place; YAML knows no tabs.",
)
TOO_DEEP = _code(
    "RM006", "Nested too deeply", "Blocks and lists may be nested 64 deep. Nothing behind this place was read.",
    "A policy needs about ten levels.",
)
DUPLICATE_KEY = _code(
    "RM007", "Duplicate key", "The block has this key already, and only one of the two values could apply.", "Remove one.",
)
ALIAS = _code(
    "RM008", "Anchor, alias or merge key", "`&name`, `*name` and `<<` are refused: a value must stand where it applies.",
    "Write the value out, or put it into `defaults`.",
)
TAG = _code("RM009", "Tag", "`!tag` is refused: the model says what type a value has.", "Remove the tag.")
SEVERAL_DOCUMENTS = _code(
    "RM010", "Several documents", "One file is one policy, but `---` begins another document here.", "Use one file a policy.",
)
NOT_FINITE = _code("RM011", "Not a finite number", "`.nan`, `.inf` and numbers too large to be meant.", "Write a finite number.")
BAD_KEY = _code(
    "RM012", "A key that is not text", "Keys are text; this one is a number, true, false, null, a list or a block.",
    "Put the key in quotes.",
)
MORE = _code(
    "RM013", "More mistakes", "Only a thousand mistakes are listed; of more than twenty thousand only the number.",
    "Mend those, and check again.",
)

# ----------------------------------------------------------------------------- RM1xx: fitting the model

UNKNOWN_KEY = _code(
    "RM101", "Unknown key", "The block has no such key. Keys are camelCase; a key that begins with `x-` is ignored.",
    "Take the suggested key, or look the block up in the reference.",
)
MISSING_KEY = _code("RM102", "Missing key", "The block needs this key.", "Write it.")
WRONG_TYPE = _code(
    "RM103", "Wrong type", "Another kind of value is needed here. Nothing is converted: \"5\" is not 5, and `yes` is not true.",
    "Write a value of the type that is named.",
)
UNKNOWN_WORD = _code("RM104", "Unknown word", "The value must be one of a few words.", "Take one of those that are listed.")
OUT_OF_BOUNDS = _code(
    "RM105", "Out of bounds", "The value is too small, too large, too short or too long.", "Stay within the bounds named.",
)
MALFORMED = _code("RM106", "Malformed text", "The text does not have the form that is needed.", "Write it in the form named.")
DURATION = _code(
    "RM107", "Not a duration", "A duration is text: numbers, each with its unit (us, ms, s, m, h, d), such as `250ms` or `1m30s`.",
    "Write the unit.",
)
BAD_NETWORK = _code(
    "RM108", "Not an IP block", "An IP address, or one with a prefix length such as 10.0.0.0/8, is needed.", "Mend the address.",
)

# -------------------------------------------------------------------------------- RM2xx: contradictions

DUPLICATE_NAME = _code(
    "RM201", "Duplicate name", "Two services, or two routes or subsets of one service, have the same name.", "Rename one.",
)
DUPLICATE_HOST = _code(
    "RM202", "Duplicate host", "A host belongs to one service. Hosts are compared without case.", "Remove it from one of the two.",
)
DUPLICATE_ENDPOINT = _code("RM203", "Duplicate endpoint", "The service has this address already.", "Remove one.")
BAD_PORT = _code("RM204", "No such port", "Ports are 1 to 65535.", "Write a port that exists.")
UNKNOWN_SUBSET = _code(
    "RM205", "Unknown subset", "A split or mirror names a subset that the service does not have.", "Define it in the service's `subsets`.",
)
NO_WEIGHT = _code("RM206", "A split without weight", "The weights of a split add up to 0.", "Give at least one subset a weight.")
EMPTY_SHARE = _code(
    "RM207", "A share of nothing", "The split sends traffic to a subset that selects no endpoint: those calls could only fail.",
    "Add an endpoint with the subset's labels, or set the weight to 0.",
)
ONE_KEY = _code(
    "RM208", "Not exactly one key", "Of these keys exactly one must be written.", "Keep one. Several conditions are several matches.",
)
BAD_REGEX = _code(
    "RM209", "Not a regular expression", "RE2 refuses it. RE2 knows no lookaround and no backreferences.", "Mend the expression.",
)
NO_FAULT = _code("RM210", "A fault that does nothing", "A `fault` needs an `abort` or a `delay`.", "Write one, or remove the block.")
BACKOFF = _code("RM211", "Backoff upside down", "The longest wait is shorter than the scale of the first.", "Raise `max` or lower `base`.")
WINDOW = _code(
    "RM212", "Window without a fitting size",
    "A COUNT_BASED window's size is a number of calls; a TIME_BASED window's a duration of at least 100ms.",
    "Write `size: 100` or `size: 10s`, as the type asks.",
)
UNREACHABLE_MINIMUM = _code(
    "RM213", "Minimum above the window", "A COUNT_BASED window never holds `minimumNumberOfCalls`, so no rate would be computed.",
    "Lower it to the window's size, or leave it out.",
)
NO_TRIP = _code(
    "RM214", "A breaker that cannot open", "Every condition that opens the circuit is null.",
    "Set `failureRateThreshold`, `slowCallRateThreshold` or `consecutiveFailures`, or set `circuitBreaker: null`.",
)
ROUTE_SCOPE = _code(
    "RM215", "Scope ROUTE outside a route", "A rate limit with `scope: ROUTE` needs a route to stand in.",
    "Move it into the route, or drop the scope.",
)
TWO_LIMITS = _code(
    "RM216", "Two limits for one bucket",
    "The rate limits of scope SERVICE in one service share one bucket, so they must be equal.",
    "Write the same limit, or give one of them `scope: ROUTE`.",
)
NEEDS_SPLIT_ORIGINS = _code(
    "RM217", "Local-origin failures are not told apart",
    "`consecutiveLocalOriginFailures` counts only with `splitExternalLocalOriginErrors: true`.",
    "Add it, or remove the count.",
)

GUARDED_MISSING = _code(
    "RM218", "A guarded service is missing",
    "A function of the running program is guarded under this name, and the new policy does not have it. The policy in force stays.",
    "Keep the service; `mode: \"OFF\"` takes its policy away.",
)

UNCHANGEABLE_HEADER = _code(
    "RM219", "A header that cannot be changed",
    "It says how the message is framed or where it goes: a changed one would break the connection, and Envoy refuses it.",
    "Remove it; `rewrite.host` changes the host.",
)
UNKNOWN_SERVICE = _code(
    "RM220", "Unknown service", "A mirror names a service that the policy does not have.", "Define it in `services`, with its endpoints.",
)
NO_MIRROR_ENDPOINTS = _code(
    "RM221", "A mirror to nowhere", "The copy goes to the endpoints of the service that the mirror names, and it has none.",
    "Give that service `endpoints`.",
)
CHANGES_NOTHING = _code(
    "RM222", "A block that does nothing", "None of its keys is written.", "Write one, or remove the block.",
)
BOTH_WAYS = _code(
    "RM223", "A status that counts both ways", "`failureStatuses` and `successStatuses` both have it.", "Remove it from one of them.",
)
BODILESS = _code(
    "RM224", "A body where there can be none", "An answer of status 204 or 304 has no body.", "Remove the body, or take another status.",
)
UNKNOWN_GROUP = _code(
    "RM225", "No such group", "The substitution refers to a group that the expression does not have.", "Add the group, or mend the number.",
)

NOT_FOR_GRPC = _code(
    "RM226", "A block that gRPC has nothing for",
    "A gRPC call ends in a message of the method's own type, or in a status: there is no static response to give, and no response header "
    "to change.",
    "Remove the block; where the service inherits it, set it to `null`. A channel takes `fallback=` in code.",
)
MIRROR_PROTOCOL = _code(
    "RM227", "A copy in another protocol", "A call over gRPC cannot be copied to a service that speaks HTTP, nor the other way round.",
    "Mirror to a service of the same protocol, or mend `protocol`.",
)

NOBODY_EXPECTED = _code(
    "RM231", "TLS that expects nobody",
    "Mutual TLS without a name would trust whoever the trust bundle vouches for: every workload of the mesh. Over gRPC, which can compare "
    "with one name only, there must be one.",
    "Name whom you expect in `identities`; over gRPC one of them, or a DNS SAN in `dnsSans`.",
)
NO_TLS = _code(
    "RM232", "Names that nobody proves",
    "Under DISABLE nothing is proved, so `identities` and `dnsSans` would only look as if they protected.",
    "Take MUTUAL or SIMPLE, or remove the names.",
)
NO_IDENTITY = _code(
    "RM233", "No identity to prove",
    "A service is called over mutual TLS, or this workload serves it, and nothing says where this workload's certificate is.",
    "Write `mesh.identity`, set RESILMESH_IDENTITY to a directory or a Workload API, or pass `identity=` to Mesh.",
)
BAD_IDENTITY = _code(
    "RM234", "An identity that cannot be used",
    "The certificate, its key or the trust bundle is missing, does not fit the others, or is not valid now.",
    "Mend what the message names; `resilmesh ca issue` makes all three.",
)

# -------------------------------------------------------------------------------------- RM4xx: warnings

UNSAFE_RETRY = _code(
    "RM401", "POST or PATCH may be sent twice",
    "`idempotent: true` holds for every method that the route matches, and it matches POST or PATCH. An order may be placed twice.",
    "Give the route a `match` with the methods that may be repeated, or drop `idempotent` and send an Idempotency-Key header.",
)
NO_BUDGET = _code(
    "RM402", "Retries without a budget",
    "In an outage every caller sends 1 + maxRetries attempts for each call, which keeps the service down.",
    "Add `retryBudget`, for example in `defaults`.",
)
SHORT_TIMEOUT = _code(
    "RM403", "A timeout that never passes", "A longer-lived limit inside a shorter one has no effect: the call ends first.",
    "Lower the inner one or raise `timeout`.",
)
SHADOWED = _code(
    "RM404", "A route that can never match", "Earlier routes match every request that this one does, and the first match wins.",
    "Move it up, or narrow the earlier ones.",
)
CONTRADICTORY_MATCH = _code(
    "RM405", "A match that can never hold", "No request satisfies all of its conditions.", "Remove one of them.",
)
FOREIGN_RETRY_WORD = _code(
    "RM406", "A retry word of another protocol",
    "It describes a gRPC status where the service does not speak gRPC, or an HTTP status where it does.",
    "Remove it, or write the word or status of the protocol that you mean.",
)
NEVER_EJECTS = _code(
    "RM407", "Outlier detection that never ejects", "By these numbers no endpoint can ever be taken out.",
    "Raise `maxEjectionPercent` to 100 divided by the number of endpoints or more, or set one of the counts.",
)
STARVED_WINDOW = _code(
    "RM408", "A breaker that sees too few calls",
    "The rate limit lets fewer calls into the window than `minimumNumberOfCalls`, so no rate is ever computed.",
    "Lower `minimumNumberOfCalls` or lengthen the window.",
)
NEVER_SLOW = _code(
    "RM409", "A call can never be slow", "Attempts end before `slowCallDurationThreshold`, "
    "so `slowCallRateThreshold` never opens the circuit.",
    "Lower `slowCallDurationThreshold` below the timeout.",
)
EMPTY_SUBSET = _code(
    "RM410", "A subset without endpoints", "No endpoint of the service carries the subset's labels.",
    "Add an endpoint with these labels, or remove the subset.",
)
OPEN_REGISTRY = _code(
    "RM411", "REGISTRY_ONLY with a host for everything",
    "A service with the host `*` owns every request, so `outbound: REGISTRY_ONLY` refuses nothing.",
    "Remove the host `*`, or write `outbound: ALLOW_ANY`.",
)
WAIT_WITHOUT_QUEUE = _code(
    "RM412", "A wait without a queue", "`maxPendingWait` bounds the wait in a queue, and `maxPending` is 0: there is none.",
    "Set `maxPending`, or remove `maxPendingWait`.",
)
GRPC_MATCH = _code(
    "RM413", "A gRPC match on an HTTP/1 service", "gRPC needs HTTP/2, so the condition never holds.",
    "Write `protocol: GRPC`, or match by path.",
)
JOINED_PATH = _code(
    "RM414", "A rewrite that joins two words or doubles a slash",
    "The prefix that matched is replaced textually: of `/v1/` and `/v1`, only one ends with a slash, and so must what replaces it.",
    "End `rewrite.path` as the prefix ends.",
)
HTTP_ONLY = _code(
    "RM415", "A block for HTTP on a service without hosts",
    "No HTTP request reaches the service, and a guarded function has no headers, path or response: the block does nothing.",
    "Give the service `hosts`, or remove the block. A guarded function takes `fallback=` in code.",
)
TOO_FEW_ENDPOINTS = _code(
    "RM416", "Rates that can never eject", "The service has too few endpoints for the figures of its rates, so no endpoint is ever judged.",
    "Lower `minimumHosts` to the number of endpoints at most, and `stdevFactor` below the square root of that number less one.",
)
