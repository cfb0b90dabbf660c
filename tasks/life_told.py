"""The facts of a life in sentences, for the terminal and for the timeline alike."""

import math
from dataclasses import dataclass

from deployments.declared import Declared
from tasks.life import LabelsCame, Monitored, Month, Released, Retrained, TrafficSent, Trained
from tasks.monitoring_record import MetricRow
from tasks.readings import stage
from tasks.release_record import Release, State
from tasks.verdict import Verdict

__all__ = ["Told", "drifted", "quality_of", "told", "told_of_month"]

_MOST_COLUMNS = 4


@dataclass(frozen=True)
class Told:
    """One sentence, and whether it tells of something good, bad or undecided; None where of neither."""

    text: str
    verdict: Verdict | None = None


def told_of_month(month: Month) -> list[Told]:
    """All of a month, in the order in which it was lived."""
    return [line for fact in month.in_order for line in told(fact)]


def told(fact: Declared) -> list[Told]:
    """What one fact says."""
    match fact:
        case Trained():
            return [_trained(fact)]
        case Released():
            return _released(fact)
        case Retrained():
            return _retrained(fact)
        case TrafficSent():
            return [_traffic(fact)]
        case LabelsCame():
            return [_labels(fact)]
        case Monitored():
            return _monitored(fact)
    return []


def _trained(fact: Trained) -> Told:
    measured = (
        f"{fact.metric} {fact.value:.3f} [{fact.low:.3f}, {fact.high:.3f}] on {fact.rows:,} rows held out"
    )
    champion = (
        f"; version {fact.compared_with} has {fact.champion_value:.3f} on the same rows"
        if fact.champion_value is not None
        else ""
    )
    if fact.version is None:
        return Told(f"Trained as of {fact.as_of:%Y-%m-%d}, refused by its gates: {fact.why}", Verdict.FAIL)
    return Told(
        f"Trained version {fact.version} as of {fact.as_of:%Y-%m-%d}: {fact.candidate}, {measured}{champion}. "
        "All gates pass.",
        fact.verdict,
    )


def _released(fact: Released) -> list[Told]:
    release = fact.release
    version = f"Version {release.challenger.version}"
    last = release.history[-1]
    callers = (
        f" Callers meanwhile: {fact.requests:,} requests, {fact.failed:,} failed." if fact.requests else ""
    )
    if release.champion is None:
        return [Told(f"{version} is champion: {last.reason}.", Verdict.PASS)]
    way = " → ".join(_way(release))
    if fact.promoted:
        took = (last.effective or last.at) - release.begun
        return [
            Told(
                f"{version} instead of {release.champion.version}: {way}, in {took.total_seconds():.0f} s.{callers}",
                Verdict.PASS,
            )
        ]
    seconds = ((last.effective or last.at) - last.observed).total_seconds()
    was = release.history[-2] if len(release.history) > 1 else None
    where = f" in {stage(was.state, was.percentage)}" if was else ""
    ended = "rolled back" if release.state is State.ROLLED_BACK else str(release.state).replace("_", " ")
    return [
        Told(f"{version} was {ended}{where}: {last.reason}", Verdict.FAIL),
        Told(
            f"Version {release.champion.version} had all traffic {seconds:.2f} s after the look that decided it."
            f"{callers}{_met(fact)}",
            Verdict.PASS if not fact.failed else Verdict.FAIL,
        ),
    ]


def _met(fact: Released) -> str:
    """How many callers got the challenger's answers."""
    if not fact.requests:
        return ""
    theirs = fact.answered.get(fact.release.challenger.version, 0)
    return f" {theirs:,} of them got its answers." if theirs else " None of them got its answers."


def _way(release: Release) -> list[str]:
    names = [
        stage(one.state, one.percentage)
        for one in release.history
        if one.state in {State.SHADOW, State.CANARY}
    ]
    return [*names, "champion"]


def _retrained(fact: Retrained) -> list[Told]:
    if fact.trained is None:
        return [
            Told(f"The retraining was {fact.state.replace('_', ' ')}: {'; '.join(fact.why)}", Verdict.FAIL)
        ]
    return [_trained(fact.trained), *(_released(fact.released) if fact.released else [])]


def _traffic(fact: TrafficSent) -> Told:
    failed = f"{fact.failed:,} failed" if fact.failed else "none failed"
    return Told(
        f"{fact.customers:,} customers, as they are on {fact.as_of:%Y-%m-%d}, ask over HTTP: "
        f"{fact.requests:,} requests, {failed}.",
        Verdict.FAIL if fact.failed else None,
    )


def _labels(fact: LabelsCame) -> Told:
    share = fact.positive / fact.labels if fact.labels else math.nan
    return Told(
        f"By {fact.known:%Y-%m-%d} it is known what became of {fact.labels:,} who asked in month {fact.of_month}: "
        f"{share:.1%} have left."
    )


def _monitored(fact: Monitored) -> list[Told]:
    """A window in two sentences at most: how it drifted, and how good the answers were where that is known."""
    outcome, found = fact.outcome, drifted(fact)
    columns = [f"{row.subject} ({row.metric} {row.value:.2f})" for row in found if row.value is not None]
    more = f" and {len(columns) - _MOST_COLUMNS} more" if len(columns) > _MOST_COLUMNS else ""
    scores = any(row.verdict is Verdict.FAIL for row in fact.of("prediction_drift"))
    verdict = outcome.verdicts.get("drift", Verdict.INCONCLUSIVE)
    which = f"Month {fact.month}, {outcome.requests:,} requests"
    if verdict is Verdict.INCONCLUSIVE:
        why = next((row.reason for row in fact.of("drift") if row.verdict is verdict), "")
        said = f"{which}: drift could not be judged{f' ({why})' if why else ''}."
    elif columns:
        said = f"{which}: drift in {', '.join(columns[:_MOST_COLUMNS])}{more}{', and in the scores' if scores else ''}."
    else:
        said = f"{which}: no drift{', apart from the scores' if scores else ''}."
    lines = [Told(said, verdict)]
    quality = quality_of(fact)
    if quality is not None and quality.value is not None:
        lines.append(
            Told(
                f"On {outcome.labelled:,} labels {quality.metric} is {quality.value:.3f}"
                f"{_interval(quality)}{_beside(quality)}.",
                quality.verdict,
            )
        )
    elif not outcome.labelled:
        lines.append(Told("How good these answers were is not known yet: their labels come later."))
    lines += [Told(f"Alert {alert.event}: {alert.reason}", Verdict.FAIL) for alert in outcome.alerts]
    return lines


def _interval(row: MetricRow) -> str:
    return f" [{row.low:.3f}, {row.high:.3f}]" if row.low is not None and row.high is not None else ""


def _beside(row: MetricRow) -> str:
    return f", against a bound of {row.threshold:.3f} from the holdout" if row.threshold is not None else ""


def drifted(fact: Monitored) -> list[MetricRow]:
    """The columns that drifted in a window, the furthest first."""
    found = [row for row in fact.of("drift") if row.subject and row.verdict is Verdict.FAIL]
    return sorted(found, key=lambda row: -(row.value or 0) / (row.threshold or 1))


def quality_of(fact: Monitored) -> MetricRow | None:
    """The judged quality of a window, by its first metric, where there were labels; their coverage is no quality."""
    found = (row for row in fact.of("quality") if not row.subject and row.metric != "coverage")
    return next((row for row in found if row.value is not None), None)
