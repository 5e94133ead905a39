"""Simulated time, network and disk. One seed makes one run: nothing here or above reads a clock or another source of
randomness.

The network is what gRPC over TCP gives. A stream delivers in order or ends, and each side learns of the end at its own
time; a request of a unary call may be lost, come late, come twice or overtake others, and so may its answer. The disk
keeps what a finished fsync covers; of the rest a crash keeps any prefix.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush
from random import Random
from typing import Any

START_MS = 1_800_000_000_000
SYNC_MS = (1, 12)
ASK_AGAIN_MS = 700
RESET_AFTER_MS = 5_000

Do = Callable[[], None]


class Crash(Exception):
    """A process died in the middle of a step."""

    def __init__(self, node: Node) -> None:
        self.node = node


class World:
    """The heap of what is to happen, and the faults that are on at the moment."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = START_MS
        self.steps = 0
        self.nodes: dict[str, Node] = {}
        self.met: Counter[str] = Counter()
        self.transcript: list[str] = []
        self.after_step: Do = lambda: None
        self.loss = self.twice = 0.0
        self.slow_ms = 1
        self.cut: Counter[tuple[str, str]] = Counter()
        self._heap: list[tuple[int, int, Do]] = []
        self._count = 0

    def at(self, when_ms: int, do: Do) -> None:
        """`do` once it is `when_ms`."""
        self._count += 1
        heappush(self._heap, (max(when_ms, self.now), self._count, do))

    def note(self, text: str) -> None:
        """One line of the transcript."""
        self.transcript.append(f"{(self.now - START_MS) / 1000:9.3f} {text}")

    def run(self, until_ms: int, done: Callable[[], bool] = lambda: False) -> None:
        """Until that time, or until `done`, which is asked ten times a second."""
        asked = self.now
        while self._heap and self._heap[0][0] <= until_ms:
            self.now, _, do = heappop(self._heap)
            self.steps += 1
            try:
                do()
            except Crash as crash:
                crash.node.crash()
            self.after_step()
            if self.now - asked >= 100:
                asked = self.now
                if done():
                    return
        self.now = max(self.now, until_ms)

    def draw(self, what: str, chance: float) -> bool:
        """Whether a fault happens that is on with this chance; counted."""
        if chance and self.random.random() < chance:
            self.met[what] += 1
            return True
        return False

    def latency(self) -> int:
        """Of one message, ms."""
        return 1 + self.random.randrange(self.slow_ms)

    def mend(self) -> None:
        """No more faults."""
        self.loss = self.twice = 0.0
        self.slow_ms = 1
        self.cut.clear()
        for node in self.nodes.values():
            node.fuse = node.skew_ms = 0


class Node:
    """A process with a clock, a life that a crash ends, and a disk that it leaves behind."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.up, self.life, self.skew_ms = False, 0, 0
        self.fuse = 0
        """Boundaries until it dies; 0: it lives."""
        self.down_ms = 500
        self.disk = Disk(self)
        self.streams: dict[Stream, None] = {}
        world.nodes[name] = self

    def clock(self) -> int:
        """Its own clock, Unix ms."""
        return self.world.now + self.skew_ms

    def later(self, ms: int, do: Do) -> None:
        """`do` after so long, if it has not died by then."""
        life = self.life
        self.world.at(self.world.now + ms, lambda: do() if self.up and self.life == life else None)

    def every(self, ms: int, do: Do) -> None:
        """`do` again and again while this life lasts."""

        def again() -> None:
            self.later(ms, again)
            do()

        self.later(ms, again)

    def boundary(self, what: str) -> None:
        """Before and after whatever leaves the process: here it may die."""
        if self.fuse:
            self.fuse -= 1
            if not self.fuse:
                self.world.note(f"{self.name} dies {what}")
                self.world.met["crash " + what] += 1
                raise Crash(self)

    def start(self) -> None:
        """A new life on the old disk."""
        self.up = True
        try:
            self.boot()
        except Crash:
            self.crash()

    def boot(self) -> None:
        """What a start does."""
        raise NotImplementedError

    def crash(self) -> None:
        """Power loss; it comes back by itself."""
        self.up, self.fuse, self.life = False, 0, self.life + 1
        self.disk.crash()
        for stream in list(self.streams):
            stream.lost_by(self)
        self.world.at(self.world.now + self.down_ms, self.start)

    def ask(self, server: str, method: str, request: Any, then: Callable[[Any], None]) -> None:
        """A unary call, repeated until there is an answer. The first answer counts."""
        answered: list[bool] = []
        life = self.life

        def answer(value: Any) -> None:
            if self.up and self.life == life and not answered:
                answered.append(True)
                then(value)

        def attempt() -> None:
            if not answered:
                self.later(ASK_AGAIN_MS, attempt)
                self.boundary("before a send")
                _unary(self.world, self, self.world.nodes[server], method, request, answer)

        attempt()


def _unary(world: World, client: Node, server: Node, method: str, request: Any, answer: Callable[[Any], None]) -> None:
    def reply(value: Any) -> None:
        server.boundary("before a send")
        _carry(world, server.name, client.name, lambda: answer(value))

    def arrive() -> None:
        if server.up:
            getattr(server, method)(request, reply)

    _carry(world, client.name, server.name, arrive)


def _carry(world: World, source: str, target: str, do: Do) -> None:
    """One datagram: lost, late, doubled, in any order."""
    if world.cut[source, target]:
        world.met["cut off"] += 1
        return
    if world.draw("lost", world.loss):
        return
    world.at(world.now + world.latency(), do)
    if world.draw("doubled", world.twice):
        world.at(world.now + world.latency() * 7, do)


class Stream:
    """A stream between two nodes: in order each way, until either side or the network ends it."""

    def __init__(self, world: World, client: Node, server: Node) -> None:
        self.world = world
        self.ends = (client, server)
        self.lives = (client.life, server.life)
        self.heard: list[Callable[[Any], None] | None] = [None, None]
        self.gone: list[Do | None] = [None, None]
        self.open = [True, True]
        self._due = [world.now, world.now]
        self._queues: tuple[deque[Any], deque[Any]] = (deque(), deque())
        for end in self.ends:
            end.streams[self] = None

    def _alive(self, side: int) -> bool:
        node = self.ends[side]
        return self.open[side] and node.up and node.life == self.lives[side]

    def send(self, node: Node, message: Any) -> None:
        """Towards the other side."""
        node.boundary("before a send")
        side = self.ends.index(node)
        if not self.open[side]:
            return
        if self.world.draw("lost", self.world.loss / 10):  # TCP repeats what is lost; what it gives up is the stream
            self.cut_off()
            return
        self._queues[side].append(message)
        self._due[side] = max(self._due[side], self.world.now + self.world.latency())
        self.world.at(self._due[side], partial(self._arrive, side, self.world.now))
        node.boundary("after a send")

    def _arrive(self, side: int, since: int) -> None:
        """The oldest message on its way arrives, whichever arrival this was made for: order is kept behind a cut."""
        world, other, queue = self.world, 1 - side, self._queues[side]
        if world.cut[self.ends[side].name, self.ends[other].name]:
            world.met["held up"] += 1
            if world.now - since > RESET_AFTER_MS:
                queue.clear()
                self.cut_off()
            else:
                world.at(world.now + 200, partial(self._arrive, side, since))
        elif queue:
            message, heard = queue.popleft(), self.heard[other]
            if self._alive(other) and heard is not None:
                heard(message)

    def end(self, node: Node) -> None:
        """Ended in order by `node`: the other side learns it."""
        side = self.ends.index(node)
        self._over(side)
        self.world.at(self.world.now + self.world.latency(), lambda: self._over(1 - side))

    def cut_off(self) -> None:
        """The connection breaks; each side learns it at its own time."""
        for side in (0, 1):
            self.world.at(self.world.now + self.world.random.randrange(1, 3000), partial(self._over, side))

    def lost_by(self, node: Node) -> None:
        """A side died; the other learns it at once, from its kernel, or only by silence."""
        side = self.ends.index(node)
        self.open[side] = False
        node.streams.pop(self, None)
        wait = self.world.random.choice((1, 50, RESET_AFTER_MS))
        self.world.at(self.world.now + wait, lambda: self._over(1 - side))

    def _over(self, side: int) -> None:
        node, gone = self.ends[side], self.gone[side]
        if self.open[side]:
            alive = self._alive(side)
            self.open[side] = False
            node.streams.pop(self, None)
            if alive and gone is not None:
                gone()


class Disk:
    """Operations in order; durable once a sync that began after them is over. Whoever waits is told then."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.early = False
        """A defect for tests: acknowledges before the sync."""
        self._pending: list[tuple[Do, Do | None]] = []
        self._syncing = False

    def defer(self, operation: Do) -> None:
        """Joins whatever is synced next."""
        self._pending.append((operation, None))

    def submit(self, operation: Do, then: Do) -> None:
        """Durable soon; then `then`."""
        self.node.boundary("before a write")
        if self.early:
            self._pending.append((operation, lambda: None))
            self._begin()
            then()
            return
        self._pending.append((operation, then))
        self._begin()

    def flush(self) -> None:
        """Syncs what was deferred."""
        if self._pending:
            self._begin()

    def _begin(self) -> None:
        if not self._syncing:
            self._syncing = True
            count = len(self._pending)  # what comes meanwhile is not covered
            self.node.later(self.node.world.random.randint(*SYNC_MS), lambda: self._finish(count))

    def _finish(self, count: int) -> None:
        self.node.boundary("before a sync ends")
        done, self._pending = self._pending[:count], self._pending[count:]
        for operation, _ in done:
            operation()
        self._syncing = False
        self.node.boundary("after a sync")
        for _, then in done:
            if then is not None:
                then()
        if any(then is not None for _, then in self._pending):
            self._begin()

    def crash(self) -> None:
        """Of what was not synced a prefix is there after the crash, or nothing."""
        world, pending = self.node.world, self._pending
        self._pending, self._syncing = [], False
        if not pending:
            return
        kept = world.random.randint(0, len(pending)) if world.random.random() < 0.5 else 0
        world.met["writes lost"] += len(pending) - kept
        world.met["writes torn"] += bool(0 < kept < len(pending))
        for operation, _ in pending[:kept]:
            operation()
