"""False alarms and delays of drift alarms, on the churn simulator's shop with known changes.

`python -m benchmarks.drift [--runs 100] [--changed 100] [--workers 2]`. Each run is a shop of its own seed: the
champion's training rows are 5,000 of eight monthly cut-offs of 2025, and from January 2026 on each week is a window of
1,000 requests, with the features that `features.sql` gives of customers at the week's end. What changes does so on
1 February, after four windows. The plan is that of churn's `model.yaml`, the decision is `tasks.drift`'s, Evidently's
statistics included; the champion is one logistic model, fitted to the shop of another seed.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.report import write_table

CUT_OFFS = [datetime(2025, month, 1, tzinfo=UTC) for month in range(5, 13)]
CHANGED = datetime(2026, 2, 1, tzinfo=UTC)
BEFORE, AFTER, WEEK = 4, 8, timedelta(days=7)
ENDS = [CHANGED + number * WEEK for number in range(1 - BEFORE, AFTER + 1)]
CUSTOMERS, REQUESTS, REFERENCE = 2_500, 1_000, 5_000
TEACHER = 10_000
"""The seed of the shop that the champion learned from; no run has it."""
USUAL = 0.1
"""Evidently's threshold for both distances, at more than 1,000 reference rows."""

Frame = pd.DataFrame
Alter = Callable[[Frame, np.random.Generator], Frame]


@dataclass(frozen=True)
class Case:
    """A kind of run: what changes in the shop, or in the requests that reach the endpoint."""

    title: str
    changes: tuple[dict[str, Any], ...] = ()
    alter: Alter | None = None


def _change(kind: str, size: float, over_days: int = 0) -> tuple[dict[str, Any], ...]:
    return ({"kind": kind, "day": CHANGED.date(), "size": size, "over_days": over_days},)


def _more_lapsing(customers: Frame, random: np.random.Generator) -> Frame:
    """Callers ask three times as often about customers who are lapsing."""
    weight = np.where(customers["recency_tier"] == "lapsing", 3.0, 1.0)
    return customers.iloc[random.choice(len(customers), REQUESTS, p=weight / weight.sum())]


def _nulls(customers: Frame, random: np.random.Generator) -> Frame:
    """A tenth of the requests come without one of the features."""
    drawn = _requests(customers, random)
    missing = random.random(len(drawn)) < 0.1
    return drawn.assign(engagement_score=drawn["engagement_score"].mask(missing))


def _other_scores(customers: Frame, random: np.random.Generator) -> Frame:
    """The same inputs, and scores that a lost calibration has pushed up."""
    drawn = _requests(customers, random)
    return drawn.assign(prediction=drawn["prediction"] ** 0.5)


def _requests(customers: Frame, random: np.random.Generator) -> Frame:
    return customers.iloc[random.choice(len(customers), REQUESTS)]


CASES = {
    "none": Case("none"),
    "mix": Case("category mix: callers ask 3 times as often about lapsing customers", alter=_more_lapsing),
    "nulls": Case("nulls: a feature is missing in 10 % of requests", alter=_nulls),
    "scores": Case("prediction: scores become their square roots", alter=_other_scores),
    "channel": Case("covariate, abrupt: a channel brings 3 times the sign-ups", _change("channel", 3.0)),
    "gradual": Case("covariate, gradual: the same over 6 weeks", _change("channel", 3.0, 42)),
    "price": Case("covariate, slow to show: prices rise by 60 %", _change("price", 0.6)),
    "outage": Case("one-off: 90 % of visits fail for 3 weeks", _change("outage", 0.9, 21)),
    "season": Case("season: up to 80 % more visits, for 8 weeks", _change("season", 0.8, 56)),
    "concept": Case("concept: customers exchange their habits", _change("churn_concept", 1.0)),
}


# One shop -----------------------------------------------------------------------------------------------------


class Shop:
    """The events of one seed, and the customers as they were at any moment."""

    def __init__(self, seed: int, changes: Sequence[dict[str, Any]], last: datetime) -> None:
        import duckdb

        from deployments.models.churn.simulator import simulate
        from deployments.spec import load_spec

        self.loaded = load_spec("churn")
        events = simulate("events", seed=seed, customers=CUSTOMERS, end=last.date(), changes=list(changes))
        self._session = duckdb.connect(config={"threads": 1})
        self._session.execute("SET TimeZone = 'UTC'")
        # The query sees what is there by the moment it is asked for, as `WHERE` says in it.
        self._session.register("stream", events)
        self._session.execute(
            "CREATE TABLE events AS SELECT customer_id, session_id, product_id, event_time FROM stream"
        )

    def customers(self, moment: datetime) -> Frame:
        """Those seen in the 90 days before, with their features and whether they were gone in the 30 days after."""
        frame = self._session.execute(self.loaded.sql, {"as_of": moment}).df()
        frame = frame[frame["days_since_last_event"] < 90].reset_index(drop=True)
        returned = self._session.execute(
            "SELECT DISTINCT customer_id FROM events WHERE event_time > $from AND event_time <= $to",
            {"from": moment, "to": moment + timedelta(days=30)},
        ).df()["customer_id"]
        return frame.assign(churned=~frame["customer_id"].isin(returned))


@cache
def _champion() -> Any:
    """Fitted once in each process; the same in all of them."""
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    shop = Shop(TEACHER, (), CUT_OFFS[-1] + timedelta(days=30))
    rows = pd.concat([shop.customers(moment) for moment in CUT_OFFS], ignore_index=True)
    features = shop.loaded.spec.features
    columns = make_column_transformer(
        (StandardScaler(), list(features.numeric.columns)),
        (OneHotEncoder(handle_unknown="ignore"), list(features.categorical.columns)),
    )
    return make_pipeline(columns, LogisticRegression(max_iter=2_000)).fit(rows, rows["churned"])


def _scored(customers: Frame) -> Frame:
    return customers.assign(prediction=_champion().predict_proba(customers)[:, 1])


# One run ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What one run of a case gave: by window, in order, whether there was an alarm; and the quality of the scores.

    `usual` is whether any input, or the scores, would have been called drifted by Evidently's default.
    """

    case: str
    inputs: tuple[bool, ...]
    scores: tuple[bool, ...]
    usual: tuple[bool, ...]
    quality_before: float
    quality_after: float


def run(names: Sequence[str], seed: int) -> list[Run]:
    """Play cases that share a shop; a case that alters requests alone has the shop of `none`."""
    from sklearn.metrics import roc_auc_score

    shop = Shop(seed, CASES[names[0]].changes, ENDS[-1] + timedelta(days=30))
    trained = pd.concat([shop.customers(moment) for moment in CUT_OFFS], ignore_index=True)
    reference = _scored(trained.sample(REFERENCE, random_state=seed, ignore_index=True))
    weeks = [_scored(shop.customers(end)) for end in ENDS]
    # Labelled by the day of the change, so that none of it is in this.
    month_before = _scored(shop.customers(CHANGED - timedelta(days=30)))
    runs = []
    for name in names:
        random = np.random.default_rng((seed, list(CASES).index(name)))
        alter = CASES[name].alter or _requests
        drawn = [
            (alter if number >= BEFORE else _requests)(week, random) for number, week in enumerate(weeks)
        ]
        quality = [roc_auc_score(week["churned"], week["prediction"]) for week in drawn[BEFORE:]]
        runs.append(
            Run(
                name,
                *_alarms(shop.loaded.spec, reference, drawn),
                float(roc_auc_score(month_before["churned"], month_before["prediction"])),
                float(np.mean(quality)),
            )
        )
    return runs


def _alarms(spec: Any, reference: Frame, weeks: Sequence[Frame]) -> tuple[tuple[bool, ...], ...]:
    from tasks.drift import alert_of, drift_rows
    from tasks.monitoring_record import Window

    plan = spec.monitoring.drift
    history: dict[str, list[Any]] = {"drift": [], "prediction_drift": []}
    alarms: dict[str, list[bool]] = {"drift": [], "prediction_drift": [], "usual": []}
    for end, week in zip(ENDS, weeks, strict=True):
        rows = drift_rows(
            plan,
            spec,
            version="1",
            window=Window(start=end - WEEK, end=end),
            reference=reference,
            live=week,
            reference_rows=len(reference),
            live_rows=len(week),
            html=None,
        )
        for kind, windows in history.items():
            windows.append([row for row in rows if row.kind == kind])
            alarms[kind].append(alert_of(plan, windows) is not None)
        alarms["usual"].append(any(row.subject and (row.value or 0) >= USUAL for row in rows))
    return tuple(alarms["drift"]), tuple(alarms["prediction_drift"]), tuple(alarms["usual"])


# Tables -------------------------------------------------------------------------------------------------------


def main() -> None:
    """Run all cases and write benchmarks/results/drift.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100, help="of shops without a change")
    parser.add_argument("--changed", type=int, default=100, help="of shops of each change")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    begun = time.perf_counter()
    calm = [name for name, case in CASES.items() if not case.changes]
    jobs = [(calm if seed < given.changed else ["none"], seed) for seed in range(given.runs)]
    jobs += [([name], seed) for name, case in CASES.items() if case.changes for seed in range(given.changed)]
    found: dict[str, list[Run]] = {name: [] for name in CASES}
    with ProcessPoolExecutor(given.workers) as pool:
        for runs in pool.map(run, *zip(*jobs, strict=True)):
            for one in runs:
                found[one.case].append(one)
    write_table(
        "drift",
        "Drift alarms on a simulated shop with known changes",
        f"python -m benchmarks.drift --runs {given.runs} --changed {given.changed} --workers {given.workers}",
        [
            "change",
            "runs",
            "false alarms",
            "inputs: seen",
            "weeks",
            "predictions: seen",
            "weeks",
            "ROC AUC before → after",
            "any distance ≥ 0.1: false alarms",
        ],
        [_line(name, runs) for name, runs in found.items()],
        note=_NOTE.format(weeks=len(ENDS), after=AFTER, seconds=round(time.perf_counter() - begun)),
    )


def _line(name: str, runs: Sequence[Run]) -> list[str]:
    # Without a change every alarm is a false one; else those before it.
    until = len(ENDS) if name == "none" else BEFORE
    false = [any(run.inputs[:until]) or any(run.scores[:until]) for run in runs]
    usual = [any(run.usual[:until]) for run in runs]
    seen = [_delays([getattr(run, kind) for run in runs]) for kind in ("inputs", "scores")]
    return [
        CASES[name].title,
        f"{len(runs)}",
        f"{np.mean(false):.0%}",
        *(cell for one in seen for cell in (one if name != "none" else ("–", "–"))),
        f"{np.mean([run.quality_before for run in runs]):.3f} → {np.mean([run.quality_after for run in runs]):.3f}",
        f"{np.mean(usual):.0%}",
    ]


def _delays(alarms: Sequence[tuple[bool, ...]]) -> tuple[str, str]:
    """In how many runs there was an alarm after the change, and the median and 90th percentile of its week."""
    weeks = [one[BEFORE:].index(True) + 1 for one in alarms if any(one[BEFORE:])]
    spread = f"{np.median(weeks):g} ({np.quantile(weeks, 0.9, method='higher'):g})" if weeks else "–"
    return f"{len(weeks) / len(alarms):.0%}", spread


_NOTE = (
    "Windows are weeks of 1,000 requests; an alarm needs the same column to drift in 2 of the last 3 windows and in "
    "the newest, so that the earliest comes in week 2. False alarms: runs with any alarm, of inputs or predictions, "
    "in all {weeks} weeks without a change, or in the 4 weeks before it. Seen: runs with an alarm in the {after} "
    "weeks after it. Weeks: from the change to the first alarm, median (90th percentile). ROC AUC is of the customers "
    "of a month before the change, and of those asked about after it, by labels known 30 days later. The last column "
    "is what the same distances would give at Evidently's default threshold, each window and column on its own. Where "
    "requests alone change, the shops are those of no change. {seconds} s."
)


if __name__ == "__main__":
    main()
