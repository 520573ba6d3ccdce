"""The smallest driver there is: a clock that is told the time, answers from a script, a record of every step."""

from __future__ import annotations

import textwrap

from resilmesh import Mesh
from resilmesh.engine.call import RAISE, RETURN, SEND, Call
from resilmesh.engine.verdict import Answer, Verdict, mask, of_status
from resilmesh.testing import ManualClock

INF = float("inf")
START = 1000.0

BREAKER = (
    "circuitBreaker: {slidingWindow: {size: 4}, minimumNumberOfCalls: 4, waitDurationInOpenState: 10s,"
    " permittedNumberOfCallsInHalfOpenState: 2}\n"
)
RETRIES = "retries: {maxRetries: 2, retryOn: [5xx], idempotent: true, backoff: {base: 100ms, max: 100ms}}\n"
ENDPOINTS = "endpoints: [{address: '10.0.0.1:80'}, {address: '10.0.0.2:80'}]\n"


def status(code, **more):
    """The answer that an HTTP status is."""
    return Answer(*_judged(code), code, **more)


def _judged(code):
    verdict, words = of_status(code)
    return verdict, words


OK = status(200)
OPEN = status(200, complete=False)
S503 = status(503)
REFUSED = Answer(Verdict.UNSENT, mask("5xx", "gateway-error", "reset", "connect-failure"), local_origin=True)
RESET = Answer(Verdict.FAILURE, mask("5xx", "gateway-error", "reset"))
TIMED_OUT = Answer(Verdict.FAILURE, mask("5xx", "gateway-error", "reset"), timed_out=True)
NOBODYS_FAULT = Answer(Verdict.IGNORED)


def policy(blocks, mesh=""):
    head = f"mesh: {{{mesh}}}\n" if mesh else ""
    return f"apiVersion: resilmesh/v1\n{head}services:\n- name: s\n" + textwrap.indent(textwrap.dedent(blocks), "  ")


class World:
    """One mesh with one service, ``s``, and everything that it told."""

    def __init__(self, blocks="", *, mesh="", seed=1, observed=True):
        self.clock = ManualClock(START)
        self.mesh = Mesh.from_text(policy(blocks, mesh), clock=self.clock, seed=seed)
        self.events = []
        if observed:
            self.mesh.subscribe(self.events.append)

    @property
    def now(self):
        return self.clock.monotonic()

    def apply(self, blocks):
        self.mesh.apply_text(policy(blocks))

    def plan(self, route=None):
        return self.mesh.table.named("s", route)[1]

    def call(self, idempotent=True, replayable=True, deadline=INF, route=None):
        return Call(self.plan(route), idempotent, replayable, deadline)

    def start(self, **facts):
        """A call whose first step was taken, and that step."""
        call = self.call(**facts)
        return call, call.start(self.now)

    def flying(self, **facts):
        call, step = self.start(**facts)
        assert step is SEND, step
        return call

    def run(self, *answers, call=None, takes=0.0, **facts):
        """Perform a call to its end: every attempt takes ``takes`` seconds and gets the next answer, the last one for ever."""
        call = self.call(**facts) if call is None else call
        steps, script = [], list(answers)
        step = call.start(self.now)
        while True:
            steps.append(step)
            if step is SEND:
                self.clock.advance(takes)
                step = call.answered(self.now, call.number, script.pop(0) if len(script) > 1 else script[0])
            elif step is RETURN or step is RAISE:
                return Ran(call, steps)
            else:
                self.clock.sleep(max(0.0, call.wake_at - self.now))
                step = call.woke(self.now)

    def trip(self, route=None):
        """Open the circuit by as many failures as it takes."""
        for _ in range(200):
            call, step = self.start(route=route, idempotent=False)
            if step is RAISE:
                return
            call.answered(self.now, 1, S503)
        raise AssertionError("the circuit did not open")

    def told(self, *names):
        """Names of the events so far, or of those among ``names``."""
        return [event.name for event in self.events if not names or event.name in names]

    def stats(self, route="*"):
        return self.mesh.snapshot()["services"]["s"]["routes"][route]

    def gate(self):
        return self.plan().concurrency

    def held(self):
        """Everything that calls hold at this moment: slots, places in the queue, probes, calls at endpoints, calls in flight."""
        service = self.mesh.snapshot()["services"]["s"]
        return {
            "slots": sum(each["inFlight"] + each["pending"] for each in service["concurrency"].values()),
            "probes": sum(each["probesOut"] for each in service["circuitBreakers"].values()),
            "endpoints": sum(each["inFlight"] for each in service["endpoints"].values()),
            "calls": sum(each["inFlight"] for each in service["routes"].values()),
        }


NOTHING = {"slots": 0, "probes": 0, "endpoints": 0, "calls": 0}


class Ran:
    """A call that came to its end."""

    def __init__(self, call, steps):
        self.call, self.steps, self.step = call, steps, steps[-1]
        self.attempts = steps.count(SEND)
        self.error = call.error
