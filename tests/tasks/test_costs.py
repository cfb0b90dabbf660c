import threading
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from deployments.environment import Rates
from deployments.monitoring import RetrainSpec
from tasks.costs import (
    BudgetUsedUpError,
    Cost,
    CostLog,
    budget_problems,
    budget_rows,
    price,
    require_budget,
    spent,
    spent_on,
)
from tasks.monitoring_record import Window
from tasks.verdict import Verdict

MODEL = "patients"
NOON = datetime(2026, 3, 20, 12, tzinfo=UTC)
RATES = Rates(currency="EUR", hour=0.6, gigabyte_hour=0.1, million_rows=2.0)


def loaded(**policy):
    return SimpleNamespace(name=MODEL, spec=SimpleNamespace(retrain=RetrainSpec(**policy)))


def cost(name="a", *, at=NOON, seconds=60.0, amount=1.0, **changed):
    fields = {
        "id": name,
        "flow": "train",
        "flow_run": "run-1",
        "task": "candidate",
        "began": at - timedelta(seconds=seconds),
        "seconds": seconds,
        "peak_megabytes": 500.0,
        "rows": 1000,
        "amount": amount,
        "currency": "EUR",
        "ended": True,
    }
    return Cost(**(fields | changed))


def wrote(platform, *costs):
    for one in costs:
        CostLog(platform, MODEL).write(one)


def test_a_price_is_time_and_memory_for_that_time_and_rows():
    assert price(RATES, seconds=1800, peak_megabytes=2000, rows=500_000) == pytest.approx(0.3 + 0.1 + 1.0)
    assert price(Rates(), seconds=0, peak_megabytes=10_000, rows=0) == 0


def test_a_task_counts_once_as_it_was_last_heard_of(platform):
    wrote(
        platform,
        cost(seconds=0, amount=0, ended=False),
        cost(seconds=10, amount=0.2, ended=False),
        cost(seconds=60, amount=1.0),
        cost("killed", seconds=20, amount=0.5, ended=False),
    )

    found = spent(platform, MODEL, NOON - timedelta(days=1))

    assert (found.amount, found.seconds, found.tasks, found.unfinished) == (1.5, 80, 2, 1)
    assert not found.unknown


def test_nothing_was_spent_by_a_model_that_never_ran(platform):
    assert spent(platform, MODEL, NOON).amount == 0
    assert spent_on(platform, MODEL, NOON) == ()


def test_costs_are_summed_by_flow_and_task_the_dearest_first(platform):
    wrote(
        platform,
        cost("a", amount=1, peak_megabytes=300),
        cost("b", amount=2, peak_megabytes=900, flow_run="run-2"),
        cost("c", amount=9, flow="release", task="shadow"),
    )

    first, second = spent_on(platform, MODEL, NOON - timedelta(days=1))

    assert (first.flow, first.task, first.amount) == ("release", "shadow", 9)
    assert (second.runs, second.amount, second.peak_megabytes, second.rows) == (2, 3, 900, 2000)


def test_the_span_is_from_its_beginning_to_before_its_end(platform):
    wrote(
        platform,
        cost("early", at=NOON - timedelta(hours=1)),
        cost("at"),
        cost("late", at=NOON + timedelta(1)),
    )

    assert spent(platform, MODEL, NOON, NOON + timedelta(days=1)).tasks == 1
    assert spent(platform, MODEL, NOON - timedelta(hours=1), NOON).tasks == 1
    assert spent(platform, MODEL, NOON - timedelta(hours=1)).tasks == 3


def test_a_torn_line_swallows_no_other_and_is_told_of(platform):
    wrote(platform, cost("a"))
    file = CostLog(platform, MODEL).folder / "run-1.jsonl"
    with file.open("a") as torn:
        torn.write('\n{"id":"b","flow":"tr')
    wrote(platform, cost("c"))

    found = spent(platform, MODEL, NOON - timedelta(days=1))

    assert found.tasks == 2
    assert len(found.damaged) == 1
    assert f"{file}:" in found.unknown


def test_lines_of_many_threads_do_not_mix(platform):
    def write(number):
        for place in range(50):
            wrote(platform, cost(f"{number}-{place}", task="t" * 300))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    found = spent(platform, MODEL, NOON - timedelta(days=1))

    assert (found.tasks, found.damaged) == (400, ())


def test_another_currency_is_not_added_and_is_told_of(platform):
    wrote(platform, cost("a"), cost("b", amount=7, currency="USD"))

    found = spent(platform, MODEL, NOON - timedelta(days=1))

    assert found.amount == 1
    assert found.other_currencies == ("USD",)


@pytest.mark.parametrize("policy", [{"daily_budget": 3}, {"monthly_budget": 3}])
def test_a_used_up_budget_lets_nothing_begin_and_says_the_figures(platform, policy):
    (name,) = policy
    wrote(platform, cost("a", amount=2.5))
    require_budget(platform, loaded(**policy), "candidate 'x'", NOON)
    wrote(platform, cost("b", amount=0.5))

    with pytest.raises(
        BudgetUsedUpError, match=rf"candidate 'x' of patients .* 3 of 3 EUR since .*{name}"
    ) as refused:
        require_budget(platform, loaded(**policy), "candidate 'x'", NOON)

    assert refused.value.exit_code == 3


def test_a_budget_begins_anew_with_its_day_and_month(platform):
    wrote(platform, cost("yesterday", at=NOON - timedelta(days=1), amount=5))
    policy = RetrainSpec(daily_budget=3, monthly_budget=9)

    assert budget_problems(platform, MODEL, policy, NOON) == ()
    assert len(budget_problems(platform, MODEL, policy, NOON - timedelta(days=1))) == 1
    wrote(platform, cost("february", at=NOON - timedelta(days=25), amount=100))
    assert budget_problems(platform, MODEL, policy, NOON) == ()


def test_a_budget_of_which_nobody_can_tell_what_is_left_lets_nothing_begin(platform):
    wrote(platform, cost("a", currency="USD"))

    (problem,) = budget_problems(platform, MODEL, RetrainSpec(daily_budget=3), NOON)

    assert "nobody can tell" in problem
    assert "USD" in problem
    assert budget_problems(platform, MODEL, RetrainSpec(), NOON) == ()


def rows_by_metric(platform, window, **policy):
    rows = budget_rows(platform, loaded(**policy), "3", window)
    assert {(row.kind, row.version) for row in rows} == {("budget", "3")}
    return {(row.metric, row.subject): row for row in rows}


def test_a_window_is_told_its_own_costs_and_its_day_and_month(platform):
    wrote(
        platform,
        cost("before", at=NOON - timedelta(hours=3), amount=1),
        cost("in", at=NOON - timedelta(minutes=5), amount=2, flow="monitor"),
        cost("month", at=NOON - timedelta(days=9), amount=4),
        cost("after", at=NOON + timedelta(minutes=5), amount=50),
    )
    window = Window(start=NOON - timedelta(hours=1), end=NOON)

    rows = rows_by_metric(platform, window, daily_budget=2.5, monthly_budget=100)

    assert rows["spent", ""].value == rows["spent", "monitor"].value == 2
    assert rows["spent", ""].verdict is None
    assert (rows["daily_spend", ""].value, rows["daily_spend", ""].verdict) == (3, Verdict.FAIL)
    assert (rows["monthly_spend", ""].value, rows["monthly_spend", ""].verdict) == (7, Verdict.PASS)
    assert "of 2.5" in rows["daily_spend", ""].reason
    assert ("spent", "train") not in rows


def test_of_a_window_of_days_the_dearest_is_told_over_the_end_of_a_month(platform):
    first = datetime(2026, 4, 1, tzinfo=UTC)
    wrote(
        platform,
        cost("march", at=first - timedelta(hours=30), amount=6),
        cost("april", at=first + timedelta(hours=1), amount=2),
    )
    window = Window(start=first - timedelta(days=3), end=first + timedelta(days=1))

    rows = rows_by_metric(platform, window, daily_budget=5, monthly_budget=5)

    assert (rows["daily_spend", ""].value, rows["daily_spend", ""].verdict) == (6, Verdict.FAIL)
    assert (rows["monthly_spend", ""].value, rows["monthly_spend", ""].verdict) == (2, Verdict.PASS)


def test_without_a_budget_figures_have_no_verdict_and_unknown_costs_are_inconclusive(platform):
    window = Window(start=NOON - timedelta(hours=1), end=NOON)
    assert {row.verdict for row in rows_by_metric(platform, window).values()} == {None}
    wrote(platform, cost("a", at=NOON - timedelta(minutes=1), currency="USD"))

    rows = rows_by_metric(platform, window, daily_budget=5)

    assert rows["daily_spend", ""].verdict is Verdict.INCONCLUSIVE
    assert "USD" in rows["daily_spend", ""].reason


def test_a_window_says_the_same_when_it_is_looked_at_again_later(platform):
    window = Window(start=NOON - timedelta(hours=1), end=NOON)
    wrote(platform, cost("in", at=NOON - timedelta(minutes=5)))
    before = rows_by_metric(platform, window, daily_budget=5, monthly_budget=5)
    wrote(platform, cost("later", at=NOON + timedelta(hours=2), amount=99))

    assert rows_by_metric(platform, window, daily_budget=5, monthly_budget=5) == before
