"""Thousands of workers that die, freeze, lag and are preempted, against the claim protocol.

    python benchmarks/claims_simulation.py [--quick]

A discrete-event simulation of how rows are shared out: by the claims of coarlib.store.claims (its
time-to-live, heartbeats and block size), and by plain array tasks with a verify job after them
(what coar submit does without claims). Time is simulated; the rules are the library's:
a batch of rows is committed at once; a dead worker's claim is taken over when an idle observer
has seen it untouched for the time-to-live; a preempted worker finishes its batch and releases its
claim; a frozen one is taken over and then goes on, so that its rows are computed twice.

Ideal is the time in which the same workers, at their own speeds, would finish if nobody ever
failed and rows could be cut at will: no scheme can be faster with the same failures.
"""

import argparse
import heapq
import random
import time
from dataclasses import dataclass, field, replace

import reporting

from coarlib.filling.worker import MAX_SECONDS_BETWEEN_LOOKS
from coarlib.store.claims import DEFAULT_TTL, MAX_BLOCKS

HOUR = 3600.0


@dataclass(frozen=True)
class Trouble:
    """What goes wrong; rates are events an hour and worker, durations seconds."""

    name: str = "nothing goes wrong"
    deaths: float = 0.0
    preemptions: float = 0.0
    freezes: float = 0.0
    stragglers: float = 0.0  # share of the workers
    slowness: float = 10.0  # of stragglers
    restart: float = 300.0  # until a dead or preempted worker is back
    frozen_for: float = 900.0


TROUBLES = (
    Trouble(),
    Trouble("workers die (1 in 4 h, back after 5 min)", deaths=0.25),
    Trouble("preempted (1 an hour, back after 5 min)", preemptions=1.0),
    Trouble("5% of the workers 10 times slower", stragglers=0.05),
    Trouble("workers freeze for 15 min (1 in 4 h)", freezes=0.25),
    Trouble("all of it", deaths=0.25, preemptions=1.0, freezes=0.25, stragglers=0.05),
)


@dataclass(frozen=True)
class Problem:
    """Rows to fill, seconds a row, rows a batch, workers, and rows of an array task."""

    name: str
    rows: int
    row_seconds: float
    batch: int
    workers: int
    task_rows: int


@dataclass
class Tally:
    """What happened; work is in worker seconds at the worker's own speed."""

    finished: float = 0.0
    useful: float = 0.0
    lost: float = 0.0
    doubled: float = 0.0
    taken_over: int = 0
    creations: int = 0
    rounds: int = 1


@dataclass
class Block:
    start: int
    stop: int
    owner: int | None = None
    released: bool = False
    beat: float = 0.0  # last sign of life of the owner
    left: int = 0


@dataclass
class Worker:
    speed: float
    block: int | None = None
    rows: list = field(default_factory=list)  # batches to do: (start, stop)
    life: int = 0  # counts restarts, so that events of a former life are void
    started: float = 0.0  # of the batch in hand
    stopping: bool = False  # after it
    frozen: float = 0.0  # seconds so far
    frozen_until: float = 0.0


class Simulation:
    """One run; a heap of (time, kind, worker, life, data)."""

    def __init__(self, problem, trouble, seed):
        self.p, self.t, self.rng = problem, trouble, random.Random(seed)
        self.now, self.events, self.count = 0.0, [], 0
        self.committed = bytearray(problem.rows)
        self.open_rows = problem.rows
        self.tally = Tally()
        self.parked = {}  # idle workers: since when they look
        self.workers = [
            Worker(1 / trouble.slowness if self.rng.random() < trouble.stragglers else 1.0)
            for _ in range(problem.workers)
        ]

    @property
    def ideal(self):
        total = self.p.rows * self.p.row_seconds
        return total / sum(worker.speed for worker in self.workers)

    def at(self, delay, kind, index, *data):
        self.count += 1
        worker = self.workers[index]
        event = (self.now + delay, self.count, kind, index, worker.life, worker.frozen, data)
        heapq.heappush(self.events, event)

    def run(self):
        for index in range(self.p.workers):
            self.at(self.rng.random() * 60, self.idle, index)  # a queue starts them over a minute
            self.schedule_trouble(index)
        while self.open_rows:
            self.now, _, kind, index, life, frozen, data = heapq.heappop(self.events)
            worker = self.workers[index]
            if life == worker.life and frozen < worker.frozen:  # it was frozen since
                self.at(worker.frozen - frozen, kind, index, *data)
            elif life == worker.life:
                kind(index, *data)
        self.tally.finished = self.now
        return self.tally

    def park(self, index):
        """Look again only when there may be something new: the same outcome, fewer events."""
        self.parked.setdefault(index, self.now)

    def wake(self, delay, count=None):
        """Have some idle workers look again, each at its own moment."""
        look = min(MAX_SECONDS_BETWEEN_LOOKS, DEFAULT_TTL / 6)
        for index in list(self.parked)[:count]:
            self.at(delay + self.rng.random() * look, self.idle, index)

    def schedule_trouble(self, index):
        rates = [
            (self.t.deaths, self.die),
            (self.t.preemptions, self.preempt),
            (self.t.freezes, self.freeze),
        ]
        for rate, what in rates:
            if rate:
                self.at(self.rng.expovariate(rate) * HOUR, what, index)

    def seconds(self, rows, worker):
        noise = self.rng.lognormvariate(0, 0.1)
        return rows * self.p.row_seconds * noise / self.workers[worker].speed

    def work_on(self, index, start, stop):
        """Cut the uncommitted rows of a range into batches and begin."""
        worker = self.workers[index]
        rows = [row for row in range(start, stop) if not self.committed[row]]
        size = self.p.batch
        worker.rows = [rows[i : i + size] for i in range(0, len(rows), size)]
        self.next_batch(index)

    def next_batch(self, index):
        worker = self.workers[index]
        if not worker.rows:
            self.done_with(index)
            return
        batch = worker.rows[0]
        took = self.seconds(len(batch), index)
        worker.started = self.now
        self.at(took, self.commit, index, took)

    def commit(self, index, took):
        worker = self.workers[index]
        batch = worker.rows.pop(0)
        new = 0
        for row in batch:
            new += not self.committed[row]
            self.committed[row] = 1
        self.open_rows -= new
        self.tally.useful += took * new / len(batch)
        self.tally.doubled += took * (1 - new / len(batch))
        self.count_commit(index, new)
        if worker.stopping:
            self.stop(index)
        else:
            self.next_batch(index)

    def count_commit(self, index, new):
        """For schemes that keep count."""

    def lose(self, index):
        worker = self.workers[index]
        if worker.rows:
            self.tally.lost += self.now - worker.started

    def restart(self, index, after):
        worker = self.workers[index]
        worker.life += 1
        worker.rows, worker.stopping = [], False
        self.parked.pop(index, None)
        self.at(after, self.idle, index)
        self.schedule_trouble(index)

    def preempt(self, index):
        worker = self.workers[index]
        if worker.rows:
            worker.stopping = True  # finishes its batch first
        else:
            self.stop(index)

    def freeze(self, index):
        """Everything of this worker happens later; its heart does not beat meanwhile."""
        worker = self.workers[index]
        worker.frozen += self.t.frozen_for
        worker.frozen_until = self.now + self.t.frozen_for
        self.at(self.t.frozen_for + self.rng.expovariate(self.t.freezes) * HOUR, self.freeze, index)
        self.fell_silent(index)

    def fell_silent(self, index):
        """For schemes that watch each other."""


class Claims(Simulation):
    """Workers claim blocks; the rules of coarlib.store.claims."""

    def __init__(self, problem, trouble, seed):
        super().__init__(problem, trouble, seed)
        size = max(problem.batch, -(-problem.rows // MAX_BLOCKS))
        starts = range(0, problem.rows, size)
        self.size = size
        self.blocks = [Block(s, min(s + size, problem.rows), left=0) for s in starts]
        for block in self.blocks:
            block.left = block.stop - block.start
        self.free = set(range(len(self.blocks)))
        self.silent = set()  # blocks whose owner is dead or frozen

    def alive_at(self, block):
        """When the owner of a block last touched its claim."""
        owner = self.workers[block.owner] if block.owner is not None else None
        if owner is None or owner.block is None or self.blocks[owner.block] is not block:
            return block.beat
        frozen = owner.frozen_until
        return frozen - self.t.frozen_for if frozen > self.now else self.now

    def idle(self, index):
        if self.workers[index].rows:
            return
        if self.free:
            self.parked.pop(index, None)
            number = self.rng.choice(tuple(self.free)) if len(self.free) < 50 else self.pick()
            self.take(index, number)
            return
        self.park(index)
        for number in list(self.silent):
            block = self.blocks[number]
            touched = self.alive_at(block)
            if block.left == 0 or touched == self.now:
                self.silent.discard(number)
            elif self.now - max(touched, self.parked[index]) > DEFAULT_TTL:
                self.parked.pop(index)
                self.silent.discard(number)
                self.tally.taken_over += 1
                self.take(index, number)
                return
        if self.silent:  # this observer has not watched them for long enough
            self.at(DEFAULT_TTL + 1, self.idle, index)

    def fell_silent(self, index):
        number = self.workers[index].block
        if number is not None and self.blocks[number].left:
            self.silent.add(number)
            self.wake(DEFAULT_TTL + 1, 2)

    def pick(self):
        while True:  # rejection sampling: cheaper than listing the set
            number = self.rng.randrange(len(self.blocks))
            if number in self.free:
                return number

    def take(self, index, number):
        block, worker = self.blocks[number], self.workers[index]
        self.free.discard(number)
        block.owner, block.beat, worker.block = index, self.now, number
        self.tally.creations += 1
        self.work_on(index, block.start, block.stop)

    def count_commit(self, index, new):
        worker = self.workers[index]
        if worker.block is not None:
            block = self.blocks[worker.block]
            block.left -= new

    def done_with(self, index):
        self.workers[index].block = None
        self.idle(index)

    def stop(self, index):
        worker = self.workers[index]
        if worker.block is not None and self.blocks[worker.block].owner == index:
            if self.blocks[worker.block].left:  # released: free for anybody at once
                self.free.add(worker.block)
                self.wake(0.0, 2)
            worker.block = None
        self.restart(index, self.t.restart)

    def die(self, index):
        self.lose(index)
        worker = self.workers[index]
        if worker.block is not None:
            self.blocks[worker.block].beat = self.now
            self.fell_silent(index)
            worker.block = None
        self.restart(index, self.t.restart)


class Arrays(Simulation):
    """Array tasks of fixed row ranges; dead ones are submitted again by a verify job."""

    VERIFY_SECONDS = 60.0

    def __init__(self, problem, trouble, seed):
        super().__init__(problem, trouble, seed)
        self.running = 0
        self.submit()

    def submit(self):
        size = self.p.task_rows
        starts = range(0, self.p.rows, size)
        ranges = [(s, min(s + size, self.p.rows)) for s in starts]
        self.waiting = [r for r in ranges if not all(self.committed[r[0] : r[1]])][::-1]
        self.tally.creations += len(self.waiting)

    def idle(self, index):
        worker = self.workers[index]
        if worker.rows:
            return
        self.parked.pop(index, None)
        task = worker.block  # a requeued task goes on where it was
        if task is None and self.waiting:
            task = self.waiting.pop()
            self.running += 1
        if task is not None:
            worker.block = task
            self.work_on(index, *task)
        elif self.running == 0 and not self.waiting and self.open_rows:
            self.tally.rounds += 1
            self.submit()
            self.park(index)
            self.wake(self.VERIFY_SECONDS)
        else:
            self.park(index)

    def done_with(self, index):
        self.workers[index].block = None
        self.running -= 1
        self.idle(index)

    def stop(self, index):
        self.restart(index, self.t.restart)

    def die(self, index):
        self.lose(index)
        if self.workers[index].block is not None:
            self.running -= 1  # SLURM does not requeue a task whose process was killed
            self.workers[index].block = None
        self.restart(index, self.t.restart)


PROBLEMS = (
    Problem("ViT ablations on 50,000 images", 100_000, 25.0, 8, 1000, 36),
    Problem("retrained models", 300_000, 60.0, 8, 3000, 15),
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows and workers")
    quick = parser.parse_args().quick
    results, started = [], time.perf_counter()
    for full in PROBLEMS:
        tenth = replace(full, rows=full.rows // 10, workers=full.workers // 10)
        problem = tenth if quick else full
        rows = []
        for trouble in TROUBLES:
            for scheme in (Claims, Arrays):
                rows.append(one(problem, trouble, scheme))
        title = (
            f"{problem.name}: {problem.rows:,} rows of {problem.row_seconds:g} s, "
            f"{problem.workers:,} workers, batches of {problem.batch}, tasks of {problem.task_rows}"
        )
        reporting.table(title, rows)
        results.append({"problem": vars(problem), "rows": rows})
    print(f"\nsimulated in {time.perf_counter() - started:.0f} s")
    if not quick:
        reporting.save("claims_simulation", results)


def one(problem, trouble, scheme):
    simulation = scheme(problem, trouble, seed=7)
    ideal = simulation.ideal
    tally = simulation.run()
    work = tally.useful + tally.lost + tally.doubled
    return {
        "what goes wrong": trouble.name,
        "scheme": "claims" if scheme is Claims else "array tasks",
        "hours": round(tally.finished / HOUR, 2),
        "over ideal": f"{tally.finished / ideal:.2f}x",
        "lost work": f"{tally.lost / work:.2%}",
        "doubled work": f"{tally.doubled / work:.2%}",
        "taken over": tally.taken_over,
        "rounds": tally.rounds,
        "claims or tasks": tally.creations,
    }


if __name__ == "__main__":
    main()
