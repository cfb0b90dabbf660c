"""What a scorer counts, and what it says of its last minute."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.scorer_metrics import ScorerMetrics


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def counted(metrics: ScorerMetrics, milliseconds, status=200) -> None:
    for one in milliseconds:
        metrics.answered(status, shadow=False, milliseconds=one, rows=1)


def test_quantiles_are_within_nine_percent() -> None:
    metrics = ScorerMetrics({}, Clock())

    counted(metrics, [number / 10 for number in range(1, 1001)])
    summary = metrics.summary()

    assert summary["p50_milliseconds"] == pytest.approx(50, rel=0.09)
    assert summary["p95_milliseconds"] == pytest.approx(95, rel=0.09)


def test_only_about_the_last_minute_counts() -> None:
    clock = Clock()
    metrics = ScorerMetrics({}, clock)

    counted(metrics, [500.0] * 100)
    clock.now += 70
    counted(metrics, [1.0] * 120)
    recent = metrics.summary()
    clock.now += 3600
    later = metrics.summary()

    assert recent["p95_milliseconds"] == pytest.approx(1.0, rel=0.09)
    assert recent["requests_per_second"] == pytest.approx(2.0, rel=0.1)
    assert later == {"requests_per_second": 0.0, "p50_milliseconds": None, "p95_milliseconds": None}
    assert metrics.requests == 220


@pytest.mark.parametrize("milliseconds", [0.0, 1e-9, 1e12])
def test_any_latency_can_be_counted(milliseconds) -> None:
    metrics = ScorerMetrics({}, Clock())

    counted(metrics, [milliseconds])

    assert metrics.summary()["p50_milliseconds"] is not None


def test_names_are_escaped_on_the_page() -> None:
    metrics = ScorerMetrics({"endpoint": 'a"b\\c\nd'}, Clock())
    counted(metrics, [1.0])

    page = metrics.page(waiting=3, batches=4, batched_rows=5, log_dropped=6)

    values = {
        family.name: family.samples[0].value
        for family in text_string_to_metric_families(page)
        if family.type in {"gauge", "counter"}
    }
    (requests,) = next(
        f for f in text_string_to_metric_families(page) if f.name == "contender_requests"
    ).samples
    assert requests.labels["endpoint"] == 'a"b\\c\nd'
    assert values == {
        "contender_requests": 1,
        "contender_in_flight": 0,
        "contender_queue_length": 3,
        "contender_batches": 4,
        "contender_batched_rows": 5,
        "contender_log_dropped": 6,
    }
