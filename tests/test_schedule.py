"""The plan of a run and its learning rates."""

import pytest

from fastinst.training.schedule import Schedule


def test_at_the_release_s_size_it_is_the_release_s_schedule():
    schedule = Schedule.plan(118_000, 16, warmup=10)
    assert (schedule.steps, schedule.lr) == (368_750, 1e-4)
    assert schedule.drops == [327_778, 355_092]
    assert schedule.lr_factor(0) == pytest.approx(0.1)
    assert schedule.lr_factor(9) == schedule.lr_factor(327_777) == 1
    assert schedule.lr_factor(327_778) == pytest.approx(0.1)
    assert schedule.lr_factor(355_091) == pytest.approx(0.1)
    assert schedule.lr_factor(355_092) == pytest.approx(0.01)


def test_small_data_trains_long_enough_and_is_not_evaluated_all_the_time():
    schedule = Schedule.plan(60, 4)
    assert schedule.steps == 2000 and schedule.pause_every == 40 and schedule.warmup == 40
    assert schedule.lr == pytest.approx(5e-5)


def test_what_is_given_is_kept():
    schedule = Schedule.plan(60, 4, epochs=2, lr=1.0, warmup=0, pause_every=7)
    assert (schedule.steps, schedule.lr, schedule.warmup) == (30, 1.0, 0)
    assert schedule.pause_every == 7 and schedule.lr_factor(0) == 1
    assert Schedule.plan(60, 4, steps=3).steps == 3


def test_the_plan_says_what_will_happen():
    text = str(Schedule.plan(118_000, 16, warmup=10))
    for part in ("368750 steps", "50.0 epochs", "every 7375", "lr 0.0001", "327778 and 355092"):
        assert part in text
