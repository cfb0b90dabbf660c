"""The record of a life: steps are taken once, kept whole, and told in the order in which they were lived."""

from datetime import UTC, datetime, timedelta

import pytest

from tasks.life import LabelsCame, LifeRecord, Month, TrafficSent
from tasks.monitoring_record import Window

JANUARY, MARCH = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC)


def labels(of_month=1, known=MARCH):
    return LabelsCame(of_month=of_month, known=known, labels=10, positive=2)


def test_a_step_that_is_done_is_not_taken_again(platform):
    made = []

    def make():
        made.append(1)
        return labels(of_month=len(made))

    first = LifeRecord(platform, "churn").step("2-labels", LabelsCame, make)
    again = LifeRecord(platform, "churn").step("2-labels", LabelsCame, make)

    assert first == again
    assert len(made) == 1


def test_a_step_that_failed_is_taken_again(platform):
    record = LifeRecord(platform, "churn")

    def fail():
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        record.step("2-labels", LabelsCame, fail)

    assert not record.done("2-labels")
    assert record.step("2-labels", LabelsCame, labels) == labels()


def test_a_step_that_another_version_wrote_is_taken_again(platform):
    record = LifeRecord(platform, "churn")
    (record.folder / "2-labels.json").write_text('{"of_month": 1, "came": "late"}')

    assert record.step("2-labels", LabelsCame, labels) == labels()


def test_a_life_knows_when_it_began_however_often_it_is_carried_on(platform):
    assert LifeRecord(platform, "churn").begun == LifeRecord(platform, "churn").begun
    assert LifeRecord(platform, "churn").finished() is None


def test_labels_known_at_the_beginning_of_a_month_come_before_its_traffic_and_later_ones_after_it():
    traffic = TrafficSent(
        as_of=MARCH,
        customers=1,
        requests=1,
        failed=0,
        windows=(Window(start=MARCH, end=MARCH + timedelta(seconds=1)),),
    )
    early, late = labels(known=MARCH), labels(of_month=3, known=MARCH + timedelta(days=31))

    month = Month(number=3, title="March", begins=MARCH, traffic=traffic, labels=(late, early))

    assert month.in_order == (early, traffic, late)
