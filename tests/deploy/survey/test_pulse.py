"""A machine that changes its state, by a clock of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from deploy.survey import pulse as module
from deploy.survey.pulse import OFF, Pulse


class Machine:
    """Work takes a millisecond, or ``slow`` times that while a neighbour is busy, as ``busy`` says of a
    time."""

    def __init__(self, busy: Callable[[float], bool], slow: float = 1.4) -> None:
        self.now, self.busy, self.slow = 0.0, busy, slow

    def work(self, ms: float = 1.0) -> float:
        took = ms * 1e-3 * (self.slow if self.busy(self.now) else 1.0)
        self.now += took
        return took

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Machine, float], Pulse]]:
    """A pulse that has been beating for ten seconds."""

    def begin(machine: Machine, patience: float = 100.0) -> Pulse:
        monkeypatch.setattr(module, "time", machine)
        found = Pulse(machine.work, patience)
        while machine.now < 10:
            machine.now += 0.01
            found.beat()
        return found

    yield begin


def test_usual_is_the_state_of_most_of_the_time(begun: Callable[..., Pulse]) -> None:
    assert begun(Machine(lambda now: now % 4 < 1)).usual() == pytest.approx(1e-3)
    assert begun(Machine(lambda now: now % 4 < 3)).usual() == pytest.approx(1.4e-3)


def test_many_beats_in_a_moment_stand_for_that_moment_only(begun: Callable[..., Pulse]) -> None:
    machine = Machine(lambda now: now > 10)
    beating = begun(machine)
    for _ in range(2000):
        beating.beat()
    assert machine.now > 18 and beating.usual() == pytest.approx(1e-3)


def test_rounds_in_another_state_do_not_count(begun: Callable[..., Pulse]) -> None:
    machine = Machine(lambda now: now % 1 > 0.7)
    beating = begun(machine)
    for _ in range(20):
        rounds, off = beating.steady(lambda: machine.work(10), 9, 3.0)
        assert off == 0 and rounds == pytest.approx([10e-3] * 9)
    assert 97 < beating.patience < 100, "0.3 s of each second are waited for"


def test_nobody_waits_where_the_machine_is_steady(begun: Callable[..., Pulse]) -> None:
    machine = Machine(lambda now: False)
    beating, before = begun(machine), machine.now
    rounds, off = beating.steady(lambda: machine.work(10), 9, 3.0)
    assert (len(rounds), off) == (9, 0) and beating.patience == pytest.approx(100)
    assert machine.now - before < 9 * (10 + 7) * 1e-3, "six runs of the work around each"


def test_another_state_that_stays_is_said(begun: Callable[..., Pulse]) -> None:
    machine = Machine(lambda now: now > 10)
    beating, before = begun(machine), machine.now
    rounds, off = beating.steady(lambda: machine.work(10), 9, 3.0)
    assert off > OFF and off == pytest.approx(0.4) and rounds == pytest.approx([14e-3] * 9)
    assert 3.0 < machine.now - before < 3.5


def test_patience_ends(begun: Callable[..., Pulse]) -> None:
    machine = Machine(lambda now: now > 10)
    beating, before = begun(machine, 0.5), machine.now
    for _ in range(5):
        beating.steady(lambda: machine.work(10), 9, 3.0)
    assert beating.patience <= 0 and machine.now - before < 5 * 9 * 20e-3 + 1.0


def test_a_real_product_beats() -> None:
    with module.pulse(1, 0.0) as beating:
        assert 0 < beating.beat() < 1 and beating.usual() > 0
