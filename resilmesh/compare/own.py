"""The user's own policy and running service: ``resilmesh compare --policy FILE --target URL``.

    the service of the policy   that of the URL's host, or the one that is named
    where calls go              its endpoints as written; the URL's address where it has none, or where the service was
                                named and the URL's host is another
    planes                      bare, library-off, library, sidecar
    traffic                     one kind of call at a steady rate, and nothing else but a few like it before the run

Nothing is known here of what happens inside the service: it signs no answers and counts no requests for us. Figures that
need it are left out (``Outside``), and the report says so.
"""

from __future__ import annotations

import contextlib
import difflib
import random
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

import yaml

from resilmesh.compare import report
from resilmesh.compare.cost import costs
from resilmesh.compare.judge import judge
from resilmesh.compare.measure import Figure, Measured, measure
from resilmesh.compare.planes import BARE, LIBRARY, OFF, SIDECAR, Observation, observe
from resilmesh.compare.progress import Progress
from resilmesh.compare.run import Result, Settings
from resilmesh.compare.scenarios import Calls, Open, Scenario
from resilmesh.compare.series import series
from resilmesh.compare.sides import Side, side_of
from resilmesh.compare.stats import Spread
from resilmesh.engine.match import Matcher
from resilmesh.envoy.translate import translate
from resilmesh.errors import ResilmeshError
from resilmesh.policy import document
from resilmesh.policy.check import check
from resilmesh.policy.explain import matched_host
from resilmesh.policy.load import load_file, load_text

if TYPE_CHECKING:
    from resilmesh.policy.model import Policy, Service

OWN_PLANES = (BARE, OFF, LIBRARY, SIDECAR)
#: Over all planes, so that costs have a spread.
OWN_ROUNDS = 3

#: Why a gRPC service of somebody's is not called, and what to do instead.
NO_OWN_GRPC = (
    "which of its methods to call, and with which message, --policy and --target cannot say. The scenarios run over gRPC "
    "(--protocol grpc without --policy), and `resilmesh export envoy` gives your policy to an Envoy of your own"
)

_HTTP_PORT = 80
_REACHED_WITHIN = 3.0
#: Figures for which the service would have to be asked, by how their names begin.
_INSIDE = ("attempts per call", "requests", "most at once", "answered by")
_METHOD = """\
How it was judged
  DIFFERS: beyond the tolerance and beyond chance. same: with 95 % confidence not beyond the tolerance. ?: too few calls or
  rounds to tell either; --duration, --rate and --rounds add some. Latencies are of successful calls, from when each was due.
  What the service does is its own affair: it may have done otherwise on one plane than on the other."""
_INSIDE_KEYS = ("attempts_per_call", "calls_by_attempts", "requests", "requests_by_endpoint", "requests_in_outage", "most_at_once")


class CannotCompare(ResilmeshError):
    """The policy and the target do not fit together, or nothing answers there. The message says what to do."""


@dataclass(frozen=True, slots=True)
class Steady(Open):
    """Calls of one kind."""

    method: str = "GET"
    path: str = "/"

    def __str__(self) -> str:
        return f"{self.method} {self.path}, {Open.__str__(self)}"


@dataclass(frozen=True, slots=True)
class Own(Scenario):
    """The user's situation."""

    text: str = ""
    source: str = ""
    #: What the Host header says: host and port that belong to the service.
    authority: str = ""
    #: Where calls go: ``host:port``.
    addresses: tuple[str, ...] = ()
    #: ``text`` with the addresses' hosts among the service's, for the plane that calls them directly.
    direct_text: str = ""

    @property
    def calls(self) -> Calls:
        assert isinstance(self.traffic, Steady)
        return ((self.traffic.method, self.traffic.path),)

    @property
    def policy_file(self) -> str:
        return self.source

    @property
    def policy_shown(self) -> str:
        return self.source

    def policy(self, addresses: Sequence[str] | None = None, file: str | None = None) -> str:
        """The user's text; nothing in it is replaced."""
        return self.text

    @property
    def notes(self) -> list[str]:
        """What a reader of the report has to know."""
        return [
            f"The calls went to {', '.join(self.addresses)}, as {self.authority}. Before each run {self.warm_up} calls of the same kind "
            "opened connections; they are not counted.",
            "What the service itself saw of the attempts is not known: it is not ours, and was not asked. The retries in the table are "
            "those that each plane counted itself. Where a call failed, it may have been the service or the way to it; an answer of the "
            "library or of Envoy is known by its text.",
            "A service on this machine is one more process that uses it: the runs then count as disturbed, rightly so, because it takes "
            "the CPU that client and proxy need.",
        ]


def prepare(
    file: Path, target: str, service: str | None, *, rate: float, duration: float, method: str, path: str | None, workers: int,
) -> Own:
    """Everything that can be found wrong before a call is made. Raises ``CannotCompare`` or ``PolicyError``."""
    url, port = _split(target)
    loaded = load_file(file)
    mistakes = [each for each in check(loaded) if each.severity == "error"]
    if mistakes:
        raise CannotCompare("\n".join(map(str, mistakes)))
    text = file.read_text(encoding="utf-8")
    if loaded.policy.mesh.mode != "ENFORCE":
        raise CannotCompare(f"the policy's mode is {loaded.policy.mesh.mode}, so it decides nothing; with mode: ENFORCE it can be compared")
    index = _index(loaded.policy, url, port, service)
    chosen = loaded.policy.services[index]
    address = _address(str(url.hostname), port)
    belongs = matched_host(chosen, str(url.hostname), port) is not None
    authority = url.netloc.rpartition("@")[2] if belongs else _own_host(chosen)
    if not belongs and chosen.endpoints is not None:
        text = _moved(text, index, chosen, address)
    if chosen.protocol == "GRPC":
        raise CannotCompare(f"{chosen.name} is a gRPC service: {NO_OWN_GRPC}")
    addresses = tuple(each.address for each in chosen.endpoints) if belongs and chosen.endpoints is not None else (address,)
    _reach(addresses)
    return Own(
        name="own", question=f"Your policy for {chosen.name}, your service: do library and sidecar behave alike, and what do they cost?",
        services=(), traffic=Steady(rate, duration, method.upper(), path or _target_of(url)), workers=workers,
        protocol="HTTP2" if chosen.protocol == "HTTP2" else "HTTP1", recovers=False, text=text, source=str(file),
        authority=authority, addresses=addresses, direct_text=_direct(text, index, loaded.policy, addresses),
    )


# ------------------------------------------------------------------------------------------- what is to be called


def _split(target: str) -> tuple[SplitResult, int]:
    try:
        url = urlsplit(target)
        port = url.port or _HTTP_PORT
    except ValueError as error:
        raise CannotCompare(f"--target {target!r}: {error}") from None
    if url.scheme == "https":
        raise CannotCompare(f"--target {target!r}: the way through a sidecar is plain HTTP; give an http:// URL of the service")
    if url.scheme != "http" or not url.hostname:
        raise CannotCompare(f"--target {target!r} is not a URL such as http://127.0.0.1:8080/v1/items")
    return url, port


def _target_of(url: SplitResult) -> str:
    return (url.path or "/") + (f"?{url.query}" if url.query else "")


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _index(policy: Policy, url: SplitResult, port: int, name: str | None) -> int:
    names = [service.name for service in policy.services]
    if name is not None:
        if name not in names:
            raise CannotCompare(f"there is no service {name!r} in the policy{_did_you_mean(name, names)}")
        return names.index(name)
    host = str(url.hostname)
    found = Matcher(policy).service(host, port)
    if found is None:
        hosts = [each for service in policy.services for each in service.hosts or ()]
        raise CannotCompare(
            f"no service of the policy has the host {host}{_did_you_mean(host, hosts)}; --service NAME takes one whatever its hosts "
            f"({', '.join(names) or 'there are none'})"
        )
    return found


def _did_you_mean(word: str, words: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, words, 1, 0.5)
    return f": did you mean {near[0]}?" if near else ""


def _own_host(service: Service) -> str:
    """A host of a service that was named, for the Host header."""
    hosts = [host for host in service.hosts or () if "*" not in host]
    if not hosts:
        raise CannotCompare(f"{service.name} has no host that could be called, only {', '.join(service.hosts or ()) or 'its name'}: "
                            "give a --target with a host of it")
    return hosts[0]


def _reach(addresses: Sequence[str]) -> None:
    """At least one must answer; that some do not may be just what the policy is for."""
    refused = []
    for address in addresses:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), _REACHED_WITHIN).close()
        except OSError as error:
            refused.append(f"{address} ({error.strerror or error})")
    if len(refused) == len(addresses):
        raise CannotCompare(f"nothing answers at {', '.join(refused)}: start the service first, nothing was sent")


# ------------------------------------------------------------------------------------------- the policy's text


class _Plain(yaml.SafeDumper):
    """Quotes whatever could be read otherwise: the reader of policies follows YAML 1.2, this writer 1.1."""


_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
_Plain.add_representer(str, lambda dumper, text: dumper.represent_scalar(
    "tag:yaml.org,2002:str", text, style=None if _WORD.fullmatch(text) else '"'))


def _written(data: Any) -> str:
    text: str = yaml.dump(data, Dumper=_Plain, sort_keys=False, width=120, allow_unicode=True)
    return text


def _moved(text: str, index: int, service: Service, address: str) -> str:
    """The policy with the target's address in place of the service's endpoints."""
    if service.subsets is not None:
        raise CannotCompare(
            f"{service.name} has subsets, which one address cannot stand for: give a --target with a host of it, so that its own "
            "endpoints are called")
    data = document.read(text, "").data
    data["services"][index]["endpoints"] = [{"address": address}]
    return _written(data)


def _direct(text: str, index: int, policy: Policy, addresses: Sequence[str]) -> str:
    """The policy in which the addresses themselves are hosts of the service, as far as they are no other's."""
    taken = {host.lower() for service in policy.services for host in service.hosts or ()}
    hosts = dict.fromkeys(address.rpartition(":")[0].lower() for address in addresses)
    data = document.read(text, "").data
    service = data["services"][index]
    service["hosts"] = [*(service.get("hosts") or []), *(host for host in hosts if host not in taken)]
    return _written(data)


# ------------------------------------------------------------------------------------------- the comparison


class Outside(Measured):
    """What can be said of a run without the service's help."""

    __slots__ = ()

    @classmethod
    def of(cls, measured: Measured) -> Outside:
        return cls(**{each.name: getattr(measured, each.name) for each in fields(Measured)})

    def figures(self) -> dict[str, Figure]:
        return {name: figure for name, figure in Measured.figures(self).items() if not name.startswith(_INSIDE)}

    def as_json(self) -> dict[str, Any]:
        return {**Measured.as_json(self), **dict.fromkeys(_INSIDE_KEYS)}


@contextlib.contextmanager
def own_side(plane: str, scenario: Scenario, addresses: list[str]) -> Iterator[Side]:
    """The side of a plane for the user's service."""
    assert isinstance(scenario, Own)
    changes: dict[str, Any] = {"host": scenario.authority, "signed": False}
    if plane == OFF:
        changes["policy"] = scenario.direct_text
    elif plane == LIBRARY:
        changes["targets"] = [f"http://{scenario.authority}"]
    with side_of(plane, scenario, list(scenario.addresses)) as side:
        yield replace(side, **changes)


def compare_own(settings: Settings, own: Own, progress: Progress) -> tuple[Result | None, bool]:
    """Run every round on every plane. The result of what was measured (None: nothing), and whether Ctrl-C ended it early."""
    observed: dict[str, list[Observation]] = {plane: [] for plane in settings.planes}
    order = random.Random(settings.seed)  # noqa: S311  repeatable, not secret
    rounds = settings.rounds or OWN_ROUNDS
    interrupted = False
    try:
        for number in range(rounds):
            for plane in order.sample(settings.planes, len(settings.planes)):
                progress.step(f"{plane}, round {number + 1} of {rounds}")
                observed[plane].append(_observe(settings, own, plane, number, progress.tick))
    except KeyboardInterrupt:
        interrupted = True
    known = {plane: rounds_of for plane, rounds_of in observed.items() if rounds_of}
    # What was begun and not ended on every plane cannot be compared.
    whole = min(map(len, known.values()), default=0)
    return (_result(settings, own, {plane: of_one[:whole] for plane, of_one in known.items()}) if known else None), interrupted


def in_words(result: Result) -> str:
    """The result for a terminal."""
    parts = [report.scenario(result)]
    if result.costs is not None:
        rounds = f"{result.rounds} round{'s' if result.rounds > 1 else ''}"
        parts.append("\n".join((
            f"Cost: from {rounds}. Medians; in brackets the ratio to bare of the same round, as least-median-greatest.",
            *report.restless(result.costs), "", report.table(report.cost_rows(result.costs)),
            *(["", *report.what_is_worse(result.costs, result.scenario.protocol)] if LIBRARY in result.costs else []),
        )))
    return "\n\n".join([*parts, _METHOD, report.in_short([result], {})])


def as_json(told: dict[str, Any], own: Own, interrupted: bool) -> dict[str, Any]:
    """``told``, the report of the result, with what is special about it."""
    told["run"]["interrupted"] = interrupted
    told["scenarios"][0]["notes"] = own.notes
    if told["cost"] is not None:
        told["cost"]["about"] = (
            "Your service takes its own time for an answer, which is part of every latency. While they ran, library and sidecar were asked "
            "what they decide, which costs both a little."
        )
    return told


def _observe(settings: Settings, own: Own, plane: str, number: int, tick: Callable[[], None]) -> Observation:
    found = observe(plane, own, client=settings.client, seed=settings.seed + number, tick=tick, sides=own_side)
    return replace(found, names={address: address for address in own.addresses}, services_cpu=None)


def _result(settings: Settings, own: Own, observed: Mapping[str, Sequence[Observation]]) -> Result:
    planes: dict[str, Measured] = {plane: Outside.of(measure(rounds, own)) for plane, rounds in observed.items()}
    judgements, notes = [], []
    if LIBRARY in planes and SIDECAR in planes:
        judgements = [each for each in judge(planes[LIBRARY], planes[SIDECAR], own, settings.seed) if not each.figure.startswith(_INSIDE)]
        notes = translate(load_text(own.text, own.source).policy).notes
    return Result(
        own, planes, judgements, notes, costs(observed) if BARE in observed else None,
        series={plane: _over_time(rounds, own) for plane, rounds in observed.items()},
        spread={plane: _spread(rounds, own) for plane, rounds in observed.items() if len(rounds) > 1},
        disturbances={plane: [each.disturbance for each in rounds] for plane, rounds in observed.items()},
        cpu={plane: [{**each.cpu(), "services": None} for each in rounds] for plane, rounds in observed.items()},
    )


def _over_time(rounds: Sequence[Observation], own: Own) -> dict[str, Any]:
    place = next((place for place, each in enumerate(rounds) if not each.disturbance.reasons), 0)
    return {**series(rounds[place], own, place + 1), "requests": {}, "retries": None, "amplification": None, "at_services": None}


def _spread(rounds: Sequence[Observation], own: Own) -> dict[str, Spread]:
    figures = [Outside.of(measure([each], own)).figures() for each in rounds]
    names = dict.fromkeys(name for of_one in figures for name in of_one)
    return {name: Spread.of([of_one.get(name, Figure(0)).value for of_one in figures]) for name in names}
