"""The gRPC service that is called: a process of its own that answers well, badly, late or never, breaks streams off, and starts anew in the
midst of them, as its seed draws.

``python -m benchmarks.soak.grpc_service SEED`` prints its port and serves until its standard input ends.
"""

from __future__ import annotations

import random
import sys
import threading

from tests.grpc.grpc_service import HANG, OK, GrpcService, Say, Seen, status

#: Seconds between two restarts, at least and at most.
RESTARTS = (0.5, 2.0)


def script(rng: random.Random) -> object:
    """What the service says, call by call."""
    def say(seen: Seen, before: int) -> Say:
        draw = rng.random()
        if draw < 0.86:
            return OK
        if draw < 0.93:
            return status(rng.choice(("UNAVAILABLE", "INTERNAL", "NOT_FOUND", "RESOURCE_EXHAUSTED")), messages=0)
        if draw < 0.95:
            return status("UNAVAILABLE", trailers=(("grpc-retry-pushback-ms", rng.choice(("0", "2", "-1"))),), messages=0)
        if draw < 0.97:
            return status("INTERNAL", messages=2)
        if draw < 0.985:
            return Say(delay=0.02, gap=0.005)
        return HANG if draw < 0.99 else Say(messages=1, how="hang")

    return say


def main(seed: int) -> None:
    rng = random.Random(seed)
    over = threading.Event()
    with GrpcService(script(rng)) as service:  # type: ignore[arg-type]  # a script, as far as it is asked
        print(service.address.rpartition(":")[2], flush=True)

        def restart() -> None:
            while not over.wait(rng.uniform(*RESTARTS)):
                service.restart()
                service.play(script(rng))  # type: ignore[arg-type]  # and what was seen is forgotten

        restarts = threading.Thread(target=restart)
        restarts.start()
        sys.stdin.read()
        over.set()
        restarts.join()


if __name__ == "__main__":
    main(int(sys.argv[1]))
