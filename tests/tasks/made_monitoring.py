"""Windows, costs and ledger entries as months of monitoring could have left them, for tests of pages."""

import math
import random
from datetime import UTC, datetime, timedelta

from deployments.spec import load_spec
from tasks.costs import Cost, Spent, SpentOn, start_of_day
from tasks.dashboard_facts import Facts
from tasks.drift_ack import DriftAck
from tasks.history import history
from tasks.ledger import Entry
from tasks.metrics import Estimate
from tasks.monitoring_record import MetricRow, Window
from tasks.release_record import State
from tasks.verdict import Verdict
from tests.tasks.made_releases import kept, look, looks, released, told, version_ref

NOW = datetime(2026, 3, 20, 12, 30, tzinfo=UTC)
PASS, FAIL, UNKNOWN = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE


def windows(count=16, *, every=timedelta(days=1), length=timedelta(days=7), end=NOW):
    last = end.replace(hour=0, minute=0, second=0, microsecond=0) if every >= timedelta(days=1) else end
    ends = [last - every * back for back in range(count - 1, -1, -1)]
    return [Window(start=one - length, end=one) for one in ends]


def row(window, kind, metric, value=None, *, version="7", subject="", verdict=None, **more):
    return MetricRow(
        version=version,
        window=window,
        kind=kind,
        metric=metric,
        subject=subject,
        value=value,
        verdict=verdict,
        rows=more.pop("rows", 1000),
        **more,
    )


def monitored(spans=None, columns=None, *, drifts_from=11, new_version_from=14):
    """Rows of all kinds: inputs drift at some window, quality falls, and another version takes over."""
    spans, seeded = spans or windows(), random.Random(4)
    columns = columns or load_spec("churn").spec.features.columns
    found = []
    for place, window in enumerate(spans):
        version = "6" if place < new_version_from else "7"
        drifts = drifts_from <= place < new_version_from
        common = {"version": version}
        for number, column in enumerate(columns):
            distance = abs(seeded.gauss(0.06, 0.03)) + (0.5 * drifts if number % 4 == 0 else 0)
            found.append(
                row(
                    window,
                    "drift",
                    "wasserstein",
                    distance,
                    subject=column,
                    threshold=0.3,
                    verdict=FAIL if distance >= 0.3 else PASS,
                    reason=f"p = 0.0003, adjusted 0.002, distance {distance:.2f}",
                    **common,
                )
            )
        moved = 0.05 + 0.4 * drifts
        verdict = FAIL if drifts else PASS
        found += [
            row(window, "drift", "drifted_columns", 3.0 * drifts, verdict=verdict, **common),
            row(
                window,
                "prediction_drift",
                "wasserstein",
                moved,
                subject="prediction",
                threshold=0.3,
                verdict=verdict,
                **common,
            ),
        ]
        auc = 0.86 + seeded.gauss(0, 0.006) - 0.09 * drifts
        labelled = place < len(spans) - 2
        judged = (FAIL if drifts else PASS) if labelled else UNKNOWN
        found += [
            row(
                window,
                "quality",
                "roc_auc",
                auc if labelled else None,
                low=auc - 0.02 if labelled else None,
                high=auc + 0.02 if labelled else None,
                threshold=0.84,
                verdict=judged,
                reason=f"{auc:.4g} where the holdout had 0.86" if labelled else "no labels yet",
                **common,
            ),
            row(window, "quality", "coverage", 0.7 if labelled else 0.0, threshold=0.2, **common),
            row(window, "estimated_quality", "estimated_roc_auc", auc + 0.01, **common),
            row(
                window,
                "slice",
                "roc_auc",
                auc - 0.03,
                subject="recency_tier=lapsing",
                low=auc - 0.08,
                high=auc + 0.02,
                **common,
            ),
        ]
        p95 = 18 + 3 * math.sin(place) + seeded.random()
        errors = 0.002 + 0.02 * (place == 9)
        found += [
            row(window, "service", "p50_milliseconds", p95 / 3, **common),
            row(
                window,
                "service",
                "p95_milliseconds",
                p95,
                low=p95 - 1,
                high=p95 + 1.5,
                threshold=100,
                verdict=PASS,
                **common,
            ),
            row(
                window,
                "service",
                "error_rate",
                errors,
                low=errors / 2,
                high=errors * 2,
                threshold=0.01,
                verdict=FAIL if errors > 0.01 else PASS,
                **common,
            ),
            row(window, "service", "requests", 5200 + 900 * math.cos(place), **common),
            row(window, "budget", "daily_spend", 0.4, threshold=2, verdict=PASS, **common),
        ]
        # Another version answered a few requests as well; nothing of it is judged.
        found.append(row(window, "service", "requests", 12.0, version="99"))
    return found


def costs(now=NOW):
    """A month of costs of three flows."""
    seeded = random.Random(5)
    made = []
    for back in range(30):
        day = start_of_day(now) - timedelta(days=back)
        for flow, task, amount in (("monitor", "drift", 0.04), ("train", "candidate boosting", 0.5)):
            if flow == "train" and back % 7:
                continue
            made.append(
                Cost(
                    id=f"{flow}-{back}",
                    flow=flow,
                    flow_run=f"run-{back}",
                    task=task,
                    began=day + timedelta(hours=3),
                    seconds=60,
                    peak_megabytes=700,
                    rows=20_000,
                    amount=amount * (1 + seeded.random()),
                    currency="EUR",
                    ended=True,
                )
            )
    return made


def entry(event, subject, *, day, **details):
    """A ledger entry of a day in March, as a ledger would have written it."""
    at = datetime(2026, 3, 1, tzinfo=UTC) + timedelta(days=day)
    return Entry(
        seq=1 + round(day * 100),
        time=at.isoformat(),
        event=event,
        actor="grace@example.com",
        model="patients",
        subject=subject,
        details=details,
        key=f"{event}/{subject}/{day}",
        previous="0" * 64,
        hash="1" * 64,
    )


def entries():
    """Gate decisions, promotions, a release caught and one taken back, retrainings and an acknowledgement."""
    six, seven, eight = (f"dev_patients/{number}" for number in (6, 7, 8))
    name = "dev_patients"
    refused = ["metric roc_auc: fail", "calibration: inconclusive"]
    return (
        entry("model.refused", "run-5", day=0.5, refused_by=refused),
        entry("model.registered", six, day=0.75, refused_by=[]),
        entry("model.promoted", six, day=1, version="6", replaces=None),
        entry(
            "retrain.refused", name, day=8, reason="drift", reasons=["the cooldown lasts"], retraining="r0"
        ),
        entry("retrain.started", name, day=9, reason="3 columns drifted", alert="drift", retraining="r1"),
        entry("model.registered", seven, day=9.5, refused_by=[]),
        entry("release.promoted", seven, day=10, release="first", seconds=0.25),
        entry("model.promoted", seven, day=10, version="7", replaces="6"),
        entry(
            "retrain.ended",
            name,
            day=10.1,
            state="promoted",
            why=["all tests passed"],
            version="7",
            retraining="r1",
        ),
        entry("model.registered", eight, day=12, refused_by=[]),
        entry("release.rolled_back", eight, day=13, release="second", seconds=0.9),
        entry("model.restored", six, day=14, version="6", leaves="7"),
        entry("rollback.by_hand", six, day=14, version="6", left="7", reason="calls", seconds=None),
        entry("model.rejected", "dev_patients/9", day=15, refused_by=["metric roc_auc: fail"]),
        entry("drift.acknowledged", "total_events", day=16, until="2026-04-01T00:00:00+00:00", reason="sale"),
    )


def recorded(platform):
    """Two releases with their records: one promoted, one caught."""
    kept(platform, told(platform, released(id="first")), looks())
    bad = released(
        State.ROLLED_BACK, after=2, id="second", champion=version_ref("7"), challenger=version_ref("8")
    )
    days = timedelta(days=9)
    steps = tuple(
        one.model_copy(update={name: getattr(one, name) + days for name in ("observed", "at", "effective")})
        for one in bad.history
    )
    later = bad.model_copy(update={"begun": bad.begun + days, "history": steps})
    kept(platform, later, [*looks()[:4], look(seconds=400)])


def facts(platform, rows=None, **changed):
    """What a dashboard of the shipped model would be made of."""
    loaded = load_spec("churn")
    policy = loaded.spec.retrain.model_copy(update={"daily_budget": 2.0, "monthly_budget": 6.0})
    loaded = loaded.model_copy(update={"spec": loaded.spec.model_copy(update={"retrain": policy})})
    spent = Spent(since=NOW, until=None, amount=4.2, currency="EUR", seconds=900, tasks=40, unfinished=1)
    holdout = {"roc_auc": Estimate(value=0.86, low=0.845, high=0.875, rows=4000)}
    fields = {
        "loaded": loaded,
        "environment": "dev",
        "name": "dev-churn",
        "now": NOW,
        "champion": "7",
        "since": NOW - timedelta(days=2),
        "rows": monitored() if rows is None else rows,
        "holdouts": {"6": holdout, "7": holdout},
        "history": history(platform, "patients"),
        "entries": entries(),
        "acks": (
            DriftAck(
                model="churn",
                columns=("total_events",),
                until=NOW + timedelta(days=9),
                reason="Easter sale",
                by="ada@example.com",
                at=NOW,
                entry=9,
            ),
        ),
        "costs": costs(),
        "spent_on": (
            SpentOn(
                flow="train",
                task="candidate boosting",
                runs=5,
                seconds=300,
                peak_megabytes=700,
                rows=100_000,
                amount=3.1,
                currency="EUR",
            ),
        ),
        "today": spent.model_copy(update={"amount": 0.05}),
        "month": spent,
    }
    return Facts(**(fields | changed))


def nothing(platform):
    """The same for a model that was never trained."""
    spent = Spent(since=NOW, until=None, amount=0, currency="EUR", seconds=0, tasks=0)
    return facts(
        platform,
        rows=(),
        loaded=load_spec("churn"),
        champion=None,
        since=None,
        holdouts={},
        history=[],
        entries=(),
        acks=(),
        costs=(),
        spent_on=(),
        today=spent,
        month=spent,
    )
