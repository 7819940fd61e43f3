"""Pieces: whatever happens to the workers, every row is done, and few are done twice."""

import itertools
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coarlib.store import Store
from coarlib.store.claims import Claims
from coarlib.store.create import initialize
from coarlib.store.pieces import Claim, Pace, pieces, still_mine
from coarlib.store.spec import parse_spec

ROWS, BLOCK, TTL = 40, 16, 100.0
CONTENT = f'{{"num_models": {ROWS}, "schema": {{"values": {{"shape": [1], "dtype": "float32"}}}}}}'
COUNT = itertools.count()


class Clock:
    """Stands for the clock of every observer; nothing else tells the time here."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr("coarlib.store.claims.time.monotonic", lambda: self.now)
        monkeypatch.setattr("coarlib.store.claims.process_identity", lambda pid: {"system": None})


class Worker:
    """One worker over a set of done rows; a step claims, or finishes what is in hand."""

    def __init__(self, store, done, seconds, clock, batch=4):
        self.done, self.seconds, self.clock, self.store = done, seconds, clock, store
        self.pace = Pace(batch)
        self.claims = Claims(store, BLOCK, TTL, self.pace)
        self.mine = self.in_hand = np.empty(0, np.int64)
        self.ready = 0.0

    def step(self):
        """Do the next thing if it is time; the rows that were computed, if any."""
        if self.clock.now < self.ready:
            return []
        computed = self.in_hand.tolist()
        if computed:
            self.done.update(computed)
            self.pace.did(len(computed), self.seconds * len(computed))
            self.claims.written += len(computed)
            self.mine = self.claims.still_mine(self.mine)
        self.in_hand = self.mine[:0]
        open_rows = np.array(sorted(set(range(ROWS)) - self.done), np.int64)
        self.pace.saw(self.clock.now, len(open_rows))
        if not len(self.mine):
            self.claims.finish()
            found = self.claims.next_rows(open_rows)
            self.mine = self.mine if found is None else found
        number = self.pace.rows()
        self.in_hand, self.mine = self.mine[:number], self.mine[number:]
        self.in_hand = np.setdiff1d(self.in_hand, sorted(self.done))
        self.ready = self.clock.now + max(1, self.seconds * len(self.in_hand))
        self.beat()
        return computed

    def beat(self):
        """Touch the own claim: the modification time only has to change."""
        if self.claims._own is not None:
            file = self.claims._file(self.claims._own)
            os.utime(file, ns=(0, next(COUNT) * 10**6))


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    return tmp_path_factory.mktemp("pieces")


def fresh(parent):
    path = parent / str(next(COUNT))
    initialize(path, parse_spec(CONTENT))
    return Store.open(path)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    paces=st.lists(st.sampled_from([1, 2, 20]), min_size=1, max_size=5),
    fates=st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from(["die", "stop", "freeze", "new"])), max_size=8
    ),
    every=st.integers(1, 30),
)
def test_no_row_is_lost_whatever_happens(parent, paces, fates, every):
    with pytest.MonkeyPatch.context() as monkeypatch:
        clock, done, store = Clock(monkeypatch), set(), fresh(parent)
        workers = [Worker(store, done, seconds, clock) for seconds in paces]
        fates = list(fates)
        for clock.now in range(4000):
            if fates and clock.now % every == 0:
                index, fate = fates.pop()
                worker = workers[index % len(workers)] if workers else None
                if fate == "new" or worker is None:
                    workers.append(Worker(store, done, 1, clock))
                elif fate == "freeze":
                    worker.ready = clock.now + 300
                else:
                    if fate == "stop":
                        worker.claims.finish()
                    workers.remove(worker)
            if not workers and not fates:
                workers.append(Worker(store, done, 2, clock))
            for worker in workers:
                worker.step()
                if worker.in_hand.size and worker.ready < clock.now + 300:
                    worker.beat()
            if len(done) == ROWS:
                break
    assert done == set(range(ROWS))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(paces=st.lists(st.integers(2, 3), min_size=1, max_size=6), batch=st.integers(1, 4))
def test_equal_workers_double_next_to_nothing(parent, paces, batch):
    with pytest.MonkeyPatch.context() as monkeypatch:
        clock, done, store = Clock(monkeypatch), set(), fresh(parent)
        workers = [Worker(store, done, seconds, clock, batch) for seconds in paces]
        computed = []
        for clock.now in range(2000):
            for worker in workers:
                computed += worker.step()
            if len(done) == ROWS:
                break
    assert set(computed) == set(range(ROWS))
    assert len(computed) - ROWS <= batch * len(workers)


@given(
    open_rows=st.sets(st.integers(0, 30), min_size=1),
    claimed=st.dictionaries(st.integers(0, 30), st.integers(0, 3)),
    in_hand=st.integers(1, 9),
)
def test_pieces_share_out_the_open_rows_and_a_cut_is_seen_by_both(open_rows, claimed, in_hand):
    rows = np.array(sorted(open_rows))
    owners = {row: Claim(row, generation) for row, generation in claimed.items()}
    found = pieces(0, rows, owners)
    assert sorted(np.concatenate([piece.rows for piece in found]).tolist()) == rows.tolist()
    for piece in found:
        own = owners.get(piece.start, Claim(piece.start, 0))
        assert still_mine(rows[rows >= piece.start], own, owners.values()).tolist() == (
            piece.rows.tolist()
        )
        assert not len(still_mine(rows, own, [Claim(own.row, own.generation + 1)]))
        cut = piece.cut(in_hand)
        assert (cut is None) == (len(piece.rows) <= in_hand)
        if cut is not None:
            kept = still_mine(piece.rows, own, [*owners.values(), cut])
            assert kept.tolist() == piece.rows[piece.rows < cut.row].tolist()
            assert in_hand <= len(kept) < len(piece.rows)
            assert len(kept) <= max(in_hand, len(piece.rows) // 2)


def test_a_worker_begins_with_one_row_and_ends_with_few():
    pace = Pace(8)
    assert (pace.rows(), pace.patience()) == (1, float("inf"))
    pace.saw(0.0, 1000)
    pace.did(1, 10.0)
    pace.saw(10.0, 990)
    assert pace.seconds_left() == 990
    assert pace.rows() == 8  # 80 s of the 990 that all need
    pace.did(8, 80.0)
    pace.saw(900.0, 100)
    assert pace.rows() == 2  # a quarter of the 100 s that are left
    pace.did(8, 8 * 300.0)
    assert pace.rows() == 1


def test_rows_that_cost_the_same_together_stay_together():
    pace = Pace(8)
    for rows, seconds in [(1, 30.0), (8, 10.0), (4, 9.0)]:
        pace.did(rows, seconds)
    pace.saw(0.0, 100)
    pace.saw(100.0, 1)
    assert pace.rows() == 8


def test_quick_rows_are_neither_cut_nor_doubled():
    pace = Pace(8)
    pace.did(8, 0.001)
    pace.saw(0.0, 100)
    pace.saw(1.0, 1)
    assert pace.rows() == 8
    assert pace.patience() == 1.0
