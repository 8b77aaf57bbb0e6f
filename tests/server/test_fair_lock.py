"""FairLock go to the threads in the order in which they came, one at a time."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from server.store.fair_lock import FairLock

MANY = 20


def test_who_came_first_is_first() -> None:
    turns, entered = FairLock(), list[int]()

    def enter(number: int) -> None:
        with turns:
            entered.append(number)

    with ThreadPoolExecutor(MANY) as pool, turns:
        for number in range(MANY):
            pool.submit(enter, number)
            until = time.monotonic() + 60
            while len(turns) < number + 2:  # it waits by now
                assert time.monotonic() < until
        assert entered == []
    assert entered == list(range(MANY))
    assert len(turns) == 0


def test_one_at_a_time_whatever_happens_inside() -> None:
    turns, inside, most = FairLock(), 0, 0

    def enter(number: int) -> None:
        nonlocal inside, most
        with turns:
            inside += 1
            most = max(most, inside)
            time.sleep(0)  # others may run
            inside -= 1
            if number % 3 == 0:
                raise ValueError(number)

    with ThreadPoolExecutor(MANY) as pool:
        ends = [pool.submit(enter, number) for number in range(20 * MANY)]
    assert most == 1
    assert sum(isinstance(end.exception(), ValueError) for end in ends) == len(range(0, 20 * MANY, 3))
    assert len(turns) == 0
