"""Many calls of one service at once, answered, abandoned, broken off, reloaded under, in any order: nothing is ever lost."""

from __future__ import annotations

from driver import INF, NOBODYS_FAULT, NOTHING, OK, OPEN, REFUSED, S503, TIMED_OUT, World, status
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from resilmesh.engine.call import RAISE, RETURN, SEND, SLEEP, WAIT
from resilmesh.engine.verdict import Verdict

ANSWERS = [
    OK, OK, OPEN, OPEN, S503, S503, REFUSED, TIMED_OUT, NOBODYS_FAULT, status(429), status(503, complete=False),
    status(503, retry_after=2.0), status(409, complete=False),
]


def blocks(limit, pending, permits, failure_rate, timeout, fault):
    """A policy that uses everything at once; what hypothesis draws is retuned under the calls in flight."""
    return f"""
endpoints: [{{address: "10.0.0.1:80"}}, {{address: "10.0.0.2:80"}}, {{address: "10.0.0.3:80"}}]
loadBalancer: LEAST_REQUEST
outlierDetection: {{consecutive5xxErrors: 2, interval: 1s, baseEjectionTime: 2s}}
concurrency: {{maxRequests: {limit}, maxPending: {pending}}}
circuitBreaker: {{failureRateThreshold: {failure_rate}, slidingWindow: {{size: 4}}, minimumNumberOfCalls: 3, waitDurationInOpenState: 2s,
  permittedNumberOfCallsInHalfOpenState: {permits}}}
rateLimit: {{requests: 20, per: 1s}}
retries: {{maxRetries: 2, retryOn: [5xx, retriable-4xx], perTryTimeout: 2s, backoff: {{base: 200ms}}}}
retryBudget: {{percent: 50, minRetriesPerSecond: 1}}
timeout: {timeout}
{fault}
"""


policies = st.builds(
    blocks, st.integers(1, 4), st.integers(0, 3), st.integers(1, 3), st.sampled_from([30, 60, 100]), st.sampled_from(["1s", "5s"]),
    st.sampled_from(["", "fault: {delay: {fixedDelay: 1s, percent: 30}, abort: {httpStatus: 503, percent: 20}}",
                     "fault: {delay: {fixedDelay: 1s, percent: 30}, abort: {httpStatus: 503, percent: 20}, scope: ATTEMPT}"]),
)


class CallMachine(RuleBasedStateMachine):
    @initialize(policy=policies, seed=st.integers(0, 9), observed=st.booleans())
    def begin(self, policy, seed, observed):
        self.world = World(policy, seed=seed, observed=observed)
        self.steps: dict = {}  # every call that is not over, and the step that it is at; RETURN: its body flows
        self.limit = self.world.gate().limit
        self.queued: list = []
        self.woken: list = []
        self.finished = 0
        self.started = 0

    # What the driver of each call does.

    def at(self, call, step):
        if step is RAISE or (step is RETURN and call.over):
            self.steps.pop(call, None)
            self.finished += 1
            assert step is RETURN or call.error is not None
        else:
            self.steps[call] = step
        if step is WAIT and call not in self.queued:
            self.queued.append(call)
        if step is not WAIT and call in self.queued:
            self.queued.remove(call)

    def calls(self, *steps):
        return [call for call, step in self.steps.items() if step in steps]

    def one(self, data, *steps):
        return data.draw(st.sampled_from(self.calls(*steps)))

    @rule(idempotent=st.booleans(), left=st.sampled_from([INF, 0.5, 3.0, 0.0]))
    def start(self, idempotent, left):
        call = self.world.call(idempotent=idempotent, deadline=self.world.now + left)
        self.started += 1
        self.at(call, call.start(self.world.now))

    @precondition(lambda self: self.calls(SEND))
    @rule(data=st.data(), answer=st.sampled_from(ANSWERS))
    def answer(self, data, answer):
        call = self.one(data, SEND)
        number = call.number
        if call.injected is not None:
            answer = status(call.injected, injected=True)
        self.at(call, call.answered(self.world.now, number, answer))
        assert call.answered(self.world.now, number, answer) is RETURN, "an answer counts once"

    @precondition(lambda self: self.calls(RETURN))
    @rule(data=st.data(), verdict=st.sampled_from([Verdict.SUCCESS, Verdict.FAILURE, Verdict.IGNORED]))
    def end(self, data, verdict):
        call = self.one(data, RETURN)
        call.ended(self.world.now, call.number, verdict)
        self.at(call, RETURN)
        assert call.over

    @precondition(lambda self: self.calls(SLEEP, WAIT))
    @rule(data=st.data())
    def wake(self, data):
        call = self.one(data, SLEEP, WAIT)
        self.at(call, call.woke(self.world.now))

    @precondition(lambda self: self.calls(WAIT))
    @rule(data=st.data(), raises=st.booleans())
    def lend(self, data, raises):
        call = self.one(data, WAIT)

        def waker():
            self.woken.append(call)
            if raises:
                raise RuntimeError("Event loop is closed")

        if call._ticket.state == "waiting":
            call.lend(waker)

    @precondition(lambda self: self.steps)
    @rule(data=st.data(), times=st.integers(1, 2))
    def abandon(self, data, times):
        call = self.one(data, SEND, SLEEP, WAIT, RETURN)
        for _ in range(times):
            call.abandon(self.world.now)
        self.at(call, RAISE)

    @precondition(lambda self: self.steps)
    @rule(data=st.data())
    def lose(self, data):
        """Garbage-collected; the next call, or whoever looks, cleans up."""
        call = self.one(data, SEND, SLEEP, WAIT, RETURN)
        call.orphan()
        self.world.mesh.snapshot()
        assert call.over
        self.at(call, RAISE)

    @rule(seconds=st.sampled_from([0.01, 0.2, 1.0, 2.0, 7.0]))
    def wait(self, seconds):
        self.world.clock.advance(seconds)

    @rule(policy=policies)
    def reload(self, policy):
        before = self.world.gate().in_flight
        self.world.apply(policy)
        self.limit = max(self.world.gate().limit, before)  # a lowered limit lets calls in flight finish

    @invariant()
    def nothing_is_lost(self):
        if not hasattr(self, "world"):
            return
        world, gate = self.world, self.world.gate()
        holding = [call for call, step in self.steps.items() if call._gate is not None]
        granted = [call for call in self.calls(WAIT) if call._ticket.state == "granted"]
        waiting = [call for call in self.queued if call._ticket.state == "waiting"]
        assert gate.in_flight == len(holding) + len(granted) <= max(self.limit, gate.limit)
        assert list(gate.queue) == [call._ticket for call in waiting], "first in, first out"
        assert not (gate.queue and gate.in_flight < gate.limit), "nobody waits beside a free slot"
        at_endpoints = [call.endpoint for call in self.steps if call.endpoint is not None]
        for endpoint in world.plan().endpoints:
            assert endpoint.in_flight == at_endpoints.count(endpoint)
        stats = world.stats()
        assert stats["calls"] == self.started
        assert stats["inFlight"] == len(self.steps)
        ends = ("succeeded", "failed", "abandoned", "ignored")
        assert sum(stats[each] for each in ends) + sum(stats["rejected"].values()) == self.finished
        assert -1e-6 <= world.plan().limit.tokens(world.now) <= 20 + 1e-6

    def teardown(self):
        """Everybody goes home: zero everywhere, and the service can be called again."""
        if not hasattr(self, "world"):
            return
        world = self.world
        for call in list(self.steps):
            call.abandon(world.now)
        assert world.held() == NOTHING
        world.apply(blocks(4, 0, 2, 60, "5s", ""))
        for _ in range(8):
            world.clock.advance(100)
            call = world.flying()
            call.answered(world.now, 1, OK)
        assert world.plan().breaker.state == "CLOSED"
        assert world.held() == NOTHING


CallMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)
TestCallMachine = CallMachine.TestCase
