"""Thousands of workers that die, freeze, lag and are preempted, against the claim protocol.

    python benchmarks/claims_simulation.py [--quick | --missing]

A discrete-event simulation of how rows are shared out: by the claims of coarlib.store (its own
functions say which piece is taken, cut or doubled, and how many rows are in hand), and by plain
array tasks with a verify job after them (what coar submit does without claims). Time is simulated:
a batch of rows is committed at once; a dead worker's claim is taken over when an idle observer has
seen it untouched for the time-to-live; a preempted worker finishes its batch and releases its
claim; a frozen one goes on later, perhaps with rows that others have done meanwhile.

Ideal is the time in which the same workers, at their own speeds, would finish if nobody ever
failed and rows could be cut at will: no scheme can be faster with the same failures.

A run of the large problem takes up to a quarter of an hour. Each is saved when it is done, and
--missing goes on with those that the results lack (remove these after a change of the rules).
"""

import argparse
import heapq
import json
import random
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace

import numpy as np
import reporting

from coarlib.filling.claiming import seconds_between_looks
from coarlib.store.claims import DEFAULT_TTL, MAX_BLOCKS
from coarlib.store.pieces import (
    LOOKS,
    MOST_DOUBLED,
    MOST_LOOKS,
    Pace,
    order,
    pieces,
    still_mine,
)

HOUR = 3600.0
SEED = 2026  # one that no rule was chosen with
NOTHING = np.empty(0, np.int64)


@dataclass(frozen=True)
class Trouble:
    """What goes wrong; rates are events an hour and worker, durations seconds."""

    name: str = "nothing goes wrong"
    deaths: float = 0.0
    preemptions: float = 0.0
    freezes: float = 0.0
    stragglers: float = 0.0  # share of the workers
    slowness: float = 10.0  # of stragglers
    tail: float = 0.0  # exponent of Pareto's law for the slowness of all workers, at most 50
    restart: float = 300.0  # until a dead or preempted worker is back
    frozen_for: float = 900.0


TROUBLES = (
    Trouble(),
    Trouble("workers die (1 in 4 h, back after 5 min)", deaths=0.25),
    Trouble("preempted (1 an hour, back after 5 min)", preemptions=1.0),
    Trouble("5% of the workers 10 times slower", stragglers=0.05),
    Trouble("seconds a row by Pareto's law (exponent 1.5)", tail=1.5),
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
    cuts: int = 0
    creations: int = 0
    rounds: int = 1


@dataclass
class Worker:
    speed: float
    block: object = None  # the claim or task in hand
    rows: list = field(default_factory=list)  # batches to do: (start, stop)
    life: int = 0  # counts restarts, so that events of a former life are void
    started: float = 0.0  # of the batch in hand
    took: float = 0.0  # which it will
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
        self.workers = [Worker(self.speed(trouble)) for _ in range(problem.workers)]

    def speed(self, trouble):
        if trouble.tail:
            return 1 / min(self.rng.paretovariate(trouble.tail), 50.0)
        return 1 / trouble.slowness if self.rng.random() < trouble.stragglers else 1.0

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
        for worker in self.workers:  # what is still in hand was done by others
            if worker.rows:
                self.tally.doubled += min(self.now - worker.started, worker.took)
        return self.tally

    def park(self, index):
        """Look again only when there may be something new: the same outcome, fewer events."""
        self.parked.setdefault(index, self.now)

    def wake(self, delay, count=None):
        """Have some idle workers look again, each at its own moment."""
        for index in list(self.parked)[:count]:
            self.at(delay + self.rng.random() * 10.0, self.idle, index)

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
        worker.started, worker.took = self.now, took
        self.at(took, self.commit, index, took)

    def commit(self, index, took):
        worker = self.workers[index]
        batch = worker.rows.pop(0)
        new = [row for row in batch if not self.committed[row]]
        for row in new:
            self.committed[row] = 1
        self.open_rows -= len(new)
        self.tally.useful += took * len(new) / len(batch)
        self.tally.doubled += took * (1 - len(new) / len(batch))
        self.count_commit(index, new, batch, took)
        if worker.stopping:
            self.stop(index)
        else:
            self.next_batch(index)

    def count_commit(self, index, new, batch, took):
        """For schemes that keep count: the rows of a batch, and those of them that are new."""

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
    """Workers claim pieces of blocks, cut them and double last rows: coarlib.store.pieces."""

    def __init__(self, problem, trouble, seed):
        super().__init__(problem, trouble, seed)
        self.size = max(problem.batch, -(-problem.rows // MAX_BLOCKS))
        blocks = -(-problem.rows // self.size)
        self.done = np.frombuffer(self.committed, np.uint8)
        self.open = np.array(
            [min(problem.rows, (b + 1) * self.size) - b * self.size for b in range(blocks)]
        )
        self.claims = [{} for _ in range(blocks)]  # {row: claim of the highest generation}
        self.owner, self.released, self.last_beat = {}, set(), {}
        tastes = np.random.default_rng(seed)
        for worker in self.workers:
            worker.taste = tastes.random(blocks, np.float32)
            self.begin(worker)

    def begin(self, worker):
        """A process that begins: what it has learnt is its own."""
        worker.pace, worker.seen, worker.looks = Pace(self.p.batch), {}, LOOKS
        worker.written = worker.doubled = 0
        worker.block, worker.mine = None, NOTHING

    def touched(self, claim):
        """When a claim's file was last touched, as an observer sees it now."""
        worker = self.workers[self.owner[claim]]
        if worker.block != claim:
            return self.last_beat[claim]
        frozen = worker.frozen_until
        return frozen - self.t.frozen_for if frozen > self.now else self.now

    def unchanged_for(self, worker, what, value):
        before, since = worker.seen.get(what, (None, self.now))
        if before != value:
            worker.seen[what], since = (value, self.now), self.now
        return self.now - since

    def idle(self, index):
        worker = self.workers[index]
        if worker.rows or worker.frozen_until > self.now:
            return
        worker.pace.saw(self.now, self.open_rows)
        if not self.look(index, worker):
            worker.looks = min(2 * worker.looks, MOST_LOOKS)
            wait = seconds_between_looks(worker.pace.row_seconds, DEFAULT_TTL)
            self.at(wait * self.rng.uniform(0.5, 1.0), self.idle, index)

    def look(self, index, worker):
        """Claims.next_rows of the library, without files; whether rows were claimed."""
        blocks = np.flatnonzero(self.open)
        taken = []
        for place in order(self.open[blocks], worker.taste[blocks], worker.looks).tolist():
            block = int(blocks[place])
            first = block * self.size
            rows = first + np.flatnonzero(self.done[first : first + self.size] == 0)
            for piece in pieces(first, rows, self.claims[block]):
                owner = None if piece.owner in self.released else piece.owner
                stale = owner is not None and self.is_stale(worker, owner)
                if owner is not None and not stale and not self.may_double(worker, piece):
                    taken.append(piece)
                    continue
                self.tally.taken_over += stale
                worker.doubled += owner is not None and not stale
                self.take(index, piece.next_claim(), piece.rows)
                return True
        in_hand = worker.pace.in_hand(waited=worker.looks == MOST_LOOKS)
        for piece in sorted(taken, key=lambda piece: -len(piece.rows)):
            claim = piece.cut(in_hand)
            if claim is not None:
                self.tally.cuts += 1
                self.take(index, claim, piece.rows[piece.rows >= claim.row])
                return True
        return False

    def is_stale(self, worker, claim):
        touched = self.touched(claim)
        return touched < self.now and self.unchanged_for(worker, claim, touched) > DEFAULT_TTL

    def may_double(self, worker, piece):
        if len(piece.rows) > 1:
            return False
        still = self.unchanged_for(worker, (piece.owner, "row"), int(piece.rows[0]))
        within_bounds = worker.doubled < 1 + MOST_DOUBLED * worker.written
        return within_bounds and still > worker.pace.patience()

    def take(self, index, claim, rows):
        worker = self.workers[index]
        self.claims[claim.row // self.size][claim.row] = claim
        self.owner[claim], worker.block, worker.looks = index, claim, LOOKS
        self.tally.creations += 1
        worker.mine = rows
        self.next_batch(index)

    def next_batch(self, index):
        worker = self.workers[index]
        if not worker.rows:
            number = worker.pace.rows()
            batch, worker.mine = worker.mine[:number], worker.mine[number:]
            batch = batch[self.done[batch] == 0]
            if len(batch):
                worker.rows = [batch.tolist()]
        if worker.rows or not len(worker.mine):
            super().next_batch(index)
        else:
            self.next_batch(index)

    def count_commit(self, index, new, batch, took):
        worker = self.workers[index]
        np.subtract.at(self.open, np.array(new, int) // self.size, 1)
        worker.pace.did(len(batch), took)
        worker.pace.saw(self.now, self.open_rows)
        worker.written += len(batch)
        claims = self.claims[worker.block.row // self.size]
        worker.mine = still_mine(worker.mine, worker.block, claims.values())

    def let_go(self, index, released):
        worker = self.workers[index]
        if worker.block is not None:
            self.last_beat[worker.block] = self.now
            if released:
                self.released.add(worker.block)
            worker.block, worker.mine = None, NOTHING

    def done_with(self, index):
        self.let_go(index, True)
        self.idle(index)

    def stop(self, index):
        self.let_go(index, True)
        self.begin(self.workers[index])
        self.restart(index, self.t.restart)

    def die(self, index):
        self.lose(index)
        self.let_go(index, False)
        self.begin(self.workers[index])
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


SCHEMES = {Claims: "claims", Arrays: "array tasks"}
PROBLEMS = (
    Problem("ViT ablations on 50,000 images", 100_000, 25.0, 8, 1000, 36),
    Problem("retrained models", 300_000, 60.0, 8, 3000, 15),
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows and workers")
    parser.add_argument("--missing", action="store_true", help="run what the results lack")
    args = parser.parse_args()
    problems = [
        replace(full, rows=full.rows // 10, workers=full.workers // 10) if args.quick else full
        for full in PROBLEMS
    ]
    runs = [(p, t, s) for p in problems for t in TROUBLES for s in (Claims, Arrays)]
    found = kept() if args.missing else {}
    wanted = [run for run in runs if key(*run) not in found]
    with ProcessPoolExecutor() as pool:
        futures = {pool.submit(one, *run): run for run in wanted}
        for future in as_completed(futures):
            found[key(*futures[future])] = future.result()
            print(futures[future][0].name, future.result(), flush=True)
            if not args.quick:
                save(runs, found)
    for problem, rows in by_problem(runs, found):
        reporting.table(problem.name, rows)


def key(problem, trouble, scheme):
    """What names a run in the results."""
    return problem.name, trouble.name, SCHEMES[scheme]


def kept():
    """Runs that the results hold."""
    path = reporting.RESULTS / "claims_simulation.json"
    parts = json.loads(path.read_text(encoding="utf-8"))["results"] if path.is_file() else []
    return {
        (part["problem"]["name"], row["what goes wrong"], row["scheme"]): row
        for part in parts
        for row in part["rows"]
        if Problem(**part["problem"]) in PROBLEMS
    }


def by_problem(runs, found):
    """Yield each problem with the rows that there are, in the order of the runs."""
    for problem in dict.fromkeys(run[0] for run in runs):
        keys = [key(*run) for run in runs if run[0] == problem]
        yield problem, [found[one] for one in keys if one in found]


def save(runs, found):
    results = [{"problem": vars(p), "rows": rows} for p, rows in by_problem(runs, found)]
    reporting.save("claims_simulation", results)


def one(problem, trouble, scheme):
    simulation = scheme(problem, trouble, SEED)
    ideal = simulation.ideal
    tally = simulation.run()
    work = tally.useful + tally.lost + tally.doubled
    return {
        "what goes wrong": trouble.name,
        "scheme": SCHEMES[scheme],
        "hours": round(tally.finished / HOUR, 2),
        "over ideal": f"{tally.finished / ideal:.2f}x",
        "lost work": f"{tally.lost / work:.2%}",
        "doubled work": f"{tally.doubled / work:.2%}",
        "taken over": tally.taken_over,
        "cut": tally.cuts,
        "rounds": tally.rounds,
        "claims or tasks": tally.creations,
    }


if __name__ == "__main__":
    main()
