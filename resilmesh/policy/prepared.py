"""A policy that another process has read and checked, so that a running one is not held up by it.

To load ten thousand services takes seconds of this interpreter, during which every call would wait for the interpreter's
lock again and again, and millions of objects, over which its garbage collector would then stop all calls. So a file that changed
is loaded by a child process; what comes back is the policy with each service in a few bytes, to be opened when it is used.

    child    load, check     -> mistakes, or: the policy without its services; each service's name, hosts and bytes
    parent   reads them, and pauses between them

Where no child can be made (no interpreter to run, no process to spare) the file is loaded here.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any, cast, overload

from resilmesh.errors import PolicyError

if TYPE_CHECKING:
    from resilmesh.policy.load import Loaded
    from resilmesh.policy.model import Policy, Service


#: A file of this size or more is loaded by a child from the start: what it leaves in memory is a tenth.
LARGE = 512 * 1024
_PROGRAM = "from resilmesh.policy.prepared import main; main()"


class Services(Sequence["Service"]):
    """Services that are opened when somebody looks at one. ``hosts``: those of each, a line each.

    Texts and bytes only: of ten thousand tuples the garbage collector would want to know what they hold, and stop every
    call for the answer.
    """

    def __init__(self, names: list[str], hosts: list[str], packed: list[bytes]) -> None:
        self._names = names
        self._hosts = hosts
        self._packed = packed
        self._last: tuple[int, Service] | None = None

    def __len__(self) -> int:
        return len(self._packed)

    @overload
    def __getitem__(self, at: int) -> Service: ...
    @overload
    def __getitem__(self, at: slice) -> list[Service]: ...
    def __getitem__(self, at: int | slice) -> Service | list[Service]:
        if isinstance(at, slice):
            return [self[number] for number in range(*at.indices(len(self)))]
        last = self._last
        if last is not None and last[0] == at:
            return last[1]  # a compilation asks for the same one once per route
        service: Service = pickle.loads(self._packed[at])  # noqa: S301  # bytes of a child of ours, through a pipe of ours
        self._last = at, service
        return service


    def names_and_hosts(self) -> Iterator[tuple[str, Sequence[str]]]:
        """Of each service, unopened."""
        return ((name, hosts.split("\n") if hosts else ()) for name, hosts in zip(self._names, self._hosts, strict=True))

    def pieces(self) -> list[object]:
        """Everything that is large, to be let go of piece by piece."""
        return [*self._names, *self._hosts, *self._packed]


def names_and_hosts(policy: Policy) -> Iterator[tuple[str, Sequence[str]]]:
    """Each service's name and hosts, without opening it."""
    services: Any = policy.services
    if isinstance(services, Services):
        yield from services.names_and_hosts()
        return
    yield from ((service.name, service.hosts or ()) for service in policy.services)


def prepare(path: str, pause: Callable[[], None] = lambda: None) -> Loaded:
    """Load and check a file in a child process; ``pause`` is called between two services.

    Raises ``PolicyError`` like ``load_file`` and ``check``.
    """
    from resilmesh.policy.load import load_file

    if not os.path.basename(sys.executable or "").startswith(("python", "pypy")):
        return load_file(path)  # embedded: what is there to run would be another program
    # The child imports what this process does, from where it does, and from nowhere else (-P). What is no text Python passes over.
    entries = [entry or os.getcwd() for entry in sys.path if isinstance(entry, str)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entries)}
    try:
        child = subprocess.Popen(  # noqa: S603  # this very interpreter
            [sys.executable, "-P", "-c", _PROGRAM, path], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=environment,
        )
    except OSError:
        return load_file(path)
    with child:
        try:
            assert child.stdout is not None
            return _receive(child.stdout, pause)
        except PolicyError:
            raise
        except Exception:  # it died, or something else wrote to its output, such as a sitecustomize
            return load_file(path)
        finally:
            child.kill()


def _receive(pipe: IO[bytes], pause: Callable[[], None]) -> Loaded:
    from resilmesh.policy.document import Places
    from resilmesh.policy.load import Loaded

    head = _next(pipe)
    if isinstance(head, list):
        raise PolicyError(head)
    policy, source, count = head
    names, its_hosts, packed = [], [], []
    for _ in range(count):
        name, hosts, service = _next(pipe)
        names.append(name)
        its_hosts.append(hosts)
        packed.append(service)
        pause()
    services = cast("list[Service]", Services(names, its_hosts, packed))
    return Loaded(policy.model_copy(update={"services": services}), source, Places(), checked=True)


def _next(pipe: IO[bytes]) -> Any:
    return pickle.load(pipe)  # noqa: S301  # see above


def main() -> None:
    """The child: ``sys.argv[1]`` is the file."""
    import gc

    gc.disable()  # it makes objects until it ends
    if hasattr(os, "nice"):
        os.nice(5)  # calls come first
    out = os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 1)
    for part in _parts(sys.argv[1]):
        pickle.dump(part, out, pickle.HIGHEST_PROTOCOL)
    out.flush()
    os._exit(0)  # to free it all one by one would take as long again


def _parts(path: str) -> Iterator[object]:
    from resilmesh.policy.check import check
    from resilmesh.policy.load import load_file

    try:
        loaded = load_file(path)
        errors = [each for each in check(loaded) if each.severity == "error"]
        if errors:
            raise PolicyError(errors)
    except PolicyError as error:
        yield list(error.diagnostics)
        return
    policy = loaded.policy
    yield policy.model_copy(update={"services": []}), loaded.source, len(policy.services)
    for service in policy.services:
        yield service.name, "\n".join(service.hosts or ()), pickle.dumps(service, pickle.HIGHEST_PROTOCOL)
