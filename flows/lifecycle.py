"""Lifecycle: four months of the embedded shop, from its first champion to a challenger that is caught in time.

Everything is done by the flows that people use: real training, real HTTP requests through the gateway, real releases.
Only time is simulated: a month is what the shop's simulator says was known at its beginning.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow

from deployments.declared import Declared
from deployments.errors import BadInputError, ContenderError
from deployments.spec import LoadedSpec
from flows.monitor import monitor
from flows.parameters import EnvironmentName, ModelName
from flows.prepare import prepare, run_name
from flows.release import NotPromotedError, viewed_by
from flows.release import release as release_flow
from flows.retrain import RetrainRefusedError
from flows.retrain import retrain as retrain_flow
from flows.train import train as train_flow
from platforms.platform import Platform
from platforms.snapshot import Snapshot
from tasks import steps
from tasks.champion import ChampionRef, standing_champion, version_ref
from tasks.labels import add_labels
from tasks.life import (
    LabelsCame,
    LifecycleOutcome,
    LifeRecord,
    Monitored,
    Month,
    Released,
    Retrained,
    Serving,
    TrafficSent,
    Trained,
)
from tasks.monitoring_record import MonitoringTable, Window
from tasks.outcome import GatesRefusedError, TrainOutcome
from tasks.progress import stage
from tasks.release_record import ENDED, Release, ReleaseStore
from tasks.retrain_record import ended_retraining, standing_retraining
from tasks.simulated_callers import Callers, answers_since, asked_within
from tasks.simulated_shop import customers_at, skewed_spec, true_labels, write_labels

__all__ = ["begin_afresh", "lifecycle", "lived_before", "told_to"]

MONTHS = tuple(datetime(2026, month, 1, tzinfo=UTC) for month in (1, 2, 3, 4))
TITLES = (
    "The first champion",
    "A month like any other",
    "The shop changes",
    "Good offline, bad online",
)
CUSTOMERS = 900
"""How many customers ask in a month, once each; during a release they ask again and again."""
QUIET_RATE, WINDOW_RATE, RELEASE_RATE = 15.0, 300.0, 180.0
"""Requests a second: beside a training, in the monitored windows, and while a release looks at them."""
SEED = 7

Teller = Callable[[int, Declared], None]
_tellers: list[Teller] = []


@contextmanager
def told_to(teller: Teller) -> Iterator[None]:
    """Tell `teller` each fact of a life in this process, with the month's number, as it becomes known."""
    _tellers.append(teller)
    try:
        yield
    finally:
        _tellers.remove(teller)


def begin_afresh(model: str, env: str) -> None:
    """End the data plane of the demo environment and remove everything under its data root.

    Raises:
        BadInputError: the environment is not the demo's: nothing is removed there.
    """
    _, platform = prepare(model, env)
    if platform.environment.name != "demo":
        raise BadInputError(
            f"--fresh removes everything of an environment, so it is for the one called demo alone, and not for "
            f"{platform.environment.name!r}"
        )
    from tasks.life import forget

    platform.data_plane.down()
    forget(platform.folder("lifecycle").parent)


@flow(name="lifecycle", flow_run_name=run_name("lifecycle"), description=__doc__)
def lifecycle(
    model: ModelName = "churn", env: EnvironmentName = "demo", keep_up: bool = False
) -> LifecycleOutcome:
    """Live four months; one that was cut short is carried on, and one that is over is told again.

    Args:
        model: A model under deployments/models, or the path of a model.yaml, with simulated sources.
        env: An environment under deployments/environments, with nothing in it but lives.
        keep_up: Leave the data plane up in the end.

    Raises:
        ContenderError: something did not go as it has to for the life to go on.
    """
    loaded, platform = prepare(model, env)
    _require_empty(loaded, platform)
    record = LifeRecord(platform, loaded.name)
    standing = lived_before(model, env)
    if standing is not None:
        return standing
    try:
        with stage("start the gateway"):
            platform.data_plane.up()
        life = _Life(model, env, loaded, platform, record)
        months = tuple(
            life.month(number, live)
            for number, live in enumerate((life.first, life.second, life.third, life.fourth), 1)
        )
        return record.finish(life.concluded(months))
    finally:
        if not keep_up:
            with stage("end the data plane"):
                platform.data_plane.down()


def lived_before(model: str, env: str) -> LifecycleOutcome | None:
    """The life that has come to its end in an environment, told once more; None where there is none."""
    loaded, platform = prepare(model, env)
    if not _begun(loaded, platform):
        return None
    standing = LifeRecord(platform, loaded.name).finished()
    for month in standing.months if standing else ():
        _tell(month.number, month)
        for fact in month.in_order:
            _tell(month.number, fact)
    return standing


def _begun(loaded: LoadedSpec, platform: Platform) -> bool:
    return (platform.folder("lifecycle") / loaded.name / "begun.json").exists()


def _require_empty(loaded: LoadedSpec, platform: Platform) -> None:
    """A life begins where nothing is yet: another's champion would be in its way."""
    if not _begun(loaded, platform) and isinstance(standing_champion(platform, loaded.name), ChampionRef):
        raise BadInputError(
            f"{loaded.name} has a champion in {platform.environment.name} already; a life begins in an environment "
            "of its own, such as demo"
        )


def _tell(month: int, fact: Declared) -> None:
    for teller in _tellers:
        teller(month, fact)


class _Life:
    """One life under way: each step is taken once, kept, and told."""

    def __init__(
        self, model: str, env: str, loaded: LoadedSpec, platform: Platform, record: LifeRecord
    ) -> None:
        self._model, self._env = model, env
        self._loaded, self._platform, self._record = loaded, platform, record
        self._number = 0

    # The months

    def month(self, number: int, live: Callable[[], dict[str, Any]]) -> Month:
        """One month, as it was kept or lived now."""
        self._number = number
        begun = Month(number=number, title=TITLES[number - 1], begins=MONTHS[number - 1])
        _tell(number, begun)
        found = live()
        served = self._record.step(
            f"{number}-champion", Serving, lambda: Serving(version=self._champion().version)
        )
        return begun.model_copy(update={**found, "champion": served.version})

    def first(self) -> dict[str, Any]:
        """Train on the year before, release with nothing to compare with, serve, and watch."""
        trained = self._step("train", Trained, lambda: self._train(self._model, MONTHS[0]))
        if trained.version is None:
            raise ContenderError(
                f"the first model was refused by its gates, so there is no life: {trained.why}"
            )
        released = self._step("release", Released, lambda: self._release(self._model, trained.version, None))
        traffic = self._step("traffic", TrafficSent, lambda: self._traffic(1))
        seen = self._monitored(1, traffic, "monitor")
        return {"trained": trained, "released": released, "traffic": traffic, "monitored": seen}

    def second(self) -> dict[str, Any]:
        """The labels of January come; nothing has changed, and nothing should be said to have."""
        labels = self._step("labels", LabelsCame, lambda: self._labels(1, MONTHS[1]))
        january = self._record.step("1-traffic", TrafficSent, self._never)
        judged = self._monitored(1, january, "monitor-january")
        traffic = self._step("traffic", TrafficSent, lambda: self._traffic(1))
        seen = self._monitored(2, traffic, "monitor")
        return {"labels": (labels,), "traffic": traffic, "monitored": (*judged, *seen)}

    def third(self) -> dict[str, Any]:
        """Another kind of customers, at other prices: seen in two windows, learnt from, and released."""
        traffic = self._step("traffic", TrafficSent, lambda: self._traffic(2))
        seen = self._monitored(3, traffic, "monitor")
        february = self._step("labels-february", LabelsCame, lambda: self._labels(2, MONTHS[3]))
        march = self._step("labels", LabelsCame, lambda: self._labels(3, MONTHS[3]))
        before = self._record.step("2-traffic", TrafficSent, self._never)
        judged = self._monitored(2, before, "monitor-february"), self._monitored(3, traffic, "monitor-march")
        seen = (*seen, *judged[0], *judged[1])
        alerts = [alert for one in seen for alert in one.outcome.alerts if not alert.acknowledged]
        wanted = [alert for alert in alerts if alert.kind in self._loaded.spec.retrain.on]
        found: dict[str, Any] = {"traffic": traffic, "monitored": seen, "labels": (february, march)}
        if wanted:
            reason = wanted[-1].reason
            found["retrained"] = self._step(
                "retrain", Retrained, lambda: self._retrain(reason, wanted[-1].kind)
            )
        return found

    def fourth(self) -> dict[str, Any]:
        """The team's next challenger has learnt weeks where callers send days."""
        traffic = self._step("traffic", TrafficSent, lambda: self._traffic(1))
        folder = self._record.folder / "challenger"
        spec = str(skewed_spec(self._loaded, folder, self._platform.environment.name))
        trained = self._step("train", Trained, lambda: self._train(spec, MONTHS[3]))
        found: dict[str, Any] = {"traffic": traffic, "trained": trained}
        if trained.version is not None:
            found["released"] = self._step(
                "release", Released, lambda: self._release(spec, trained.version, self._callers(RELEASE_RATE))
            )
        return found

    def concluded(self, months: tuple[Month, ...]) -> LifecycleOutcome:
        """All of it, with the timeline, the dashboard and the evidence written."""
        from tasks.dashboard import write_dashboard
        from tasks.evidence import newest_bundle
        from tasks.timeline import write_timeline

        champion = self._champion()
        sent: list[TrafficSent | Released] = [month.traffic for month in months if month.traffic]
        sent += [month.release for month in months if month.release]
        evidence = newest_bundle(self._platform, self._loaded.name, champion.version)
        outcome = LifecycleOutcome(
            model=self._loaded.name,
            environment=self._platform.environment.name,
            begun=self._record.begun,
            ended=datetime.now(UTC),
            months=months,
            champion=champion.version,
            requests=sum(one.requests for one in sent),
            failed=sum(one.failed for one in sent),
            surprises=surprises(months),
            timeline=str(self._record.folder / "timeline.html"),
            dashboard=str(write_dashboard(self._platform, self._loaded)),
            evidence=str(evidence) if evidence else None,
            endpoint=self._url(),
        )
        write_timeline(outcome, Path(outcome.timeline))
        return outcome

    # The steps

    def _step(self, name: str, kind: type[Any], make: Callable[[], Any]) -> Any:
        found = self._record.step(f"{self._number}-{name}", kind, make)
        _tell(self._number, found)
        return found

    def _never(self) -> TrafficSent:
        raise ContenderError("a month of this life is missing; live it anew: python -m flows.run --fresh")

    def _train(self, model: str, as_of: datetime) -> Trained:
        try:
            return trained_of(train_flow(model, self._env, as_of=as_of))
        except GatesRefusedError as error:
            return trained_of(error.outcome, str(error))

    def _release(self, model: str, version: str | None, callers: Callers | None) -> Released:
        """The release of a version; one that ended before this life was killed is not made again."""
        standing = self._release_of(version)
        if standing is not None:
            return self._released(standing)
        with self._under_traffic(callers):
            try:
                release = release_flow(model, self._env, version).release
            except NotPromotedError as error:
                release = error.outcome.release
        return self._released(release)

    def _retrain(self, reason: str, alert: Any) -> Retrained:
        """Train on what is known at the end of the month, and release what the gates propose, under traffic.

        One that ended before this life was killed is not made again: its cooldown would refuse it.
        """
        standing_retraining(self._platform, self._loaded, datetime.now(UTC))
        done = ended_retraining(self._platform, self._loaded.name)
        if done is None or done.state in {"failed", "expired"}:
            try:
                # How it ended is in the ledger, whether with a new champion or without.
                with (
                    self._under_traffic(self._callers(QUIET_RATE)),
                    suppress(NotPromotedError, GatesRefusedError),
                ):
                    retrain_flow(self._model, self._env, reason, alert, as_of=MONTHS[3])
            except RetrainRefusedError as error:
                return Retrained(state="refused", why=(str(error),), trained=None, released=None)
            done = ended_retraining(self._platform, self._loaded.name)
        assert done is not None
        release = self._release_of(done.version)
        return Retrained(
            state="refused" if done.state == "gates_refused" else done.state,
            why=done.why,
            trained=self._trained_version(done.version),
            released=self._released(release) if release else None,
        )

    def _release_of(self, version: str | None) -> Release | None:
        """The newest release of a version that has ended."""
        found = ReleaseStore(self._platform, self._loaded.name).newest()
        if (
            found is None
            or version is None
            or found.challenger.version != version
            or found.state not in ENDED
        ):
            return None
        return found

    def _released(self, release: Release) -> Released:
        report = ReleaseStore(self._platform, self._loaded.name).folder(release.id) / "report.html"
        counted = self._asked_beside_the_windows()
        return Released(
            release=release,
            requests=counted["asked"],
            failed=counted["failed"],
            answered={
                name.removeprefix("version "): count
                for name, count in counted.items()
                if name.startswith("version ")
            },
            report=str(report) if report.exists() else None,
        )

    def _asked_beside_the_windows(self) -> Counter[str]:
        """What callers got this month after its windows: while a model was trained and released."""
        name = f"{self._number}-traffic"
        if not self._record.done(name):
            return Counter()
        traffic = self._record.step(name, TrafficSent, self._never)
        return answers_since(self._requests(self._number), traffic.windows[-1].end)

    def _trained_version(self, version: str | None) -> Trained | None:
        """What the run of a version says of its training."""
        from tasks.tracking import Tracking

        ref = version_ref(self._platform, self._loaded.name, version) if version else None
        if not isinstance(ref, ChampionRef):
            return None
        outcome = Tracking(self._platform).document(ref.run_id, "outcome", TrainOutcome)
        return trained_of(outcome) if outcome else None

    @contextmanager
    def _under_traffic(self, callers: Callers | None) -> Iterator[None]:
        """Callers ask meanwhile; more of them once a release looks at what they get."""
        if callers is None:
            yield
            return

        def faster(*_: object) -> None:
            callers.rate = RELEASE_RATE

        with callers.keep_asking(), viewed_by(faster):
            yield

    def _traffic(self, windows: int) -> TrafficSent:
        """This month's customers ask, once each, in so many windows one behind the other."""
        callers = self._callers(WINDOW_RATE)
        asked = [callers.ask(len(callers.rows) // windows) for _ in range(windows)]
        return TrafficSent(
            as_of=MONTHS[self._number - 1],
            customers=len(callers.rows),
            requests=sum(one.requests for one in asked),
            failed=sum(one.failed for one in asked),
            windows=tuple(one.window for one in asked),
        )

    def _callers(self, rate: float) -> Callers:
        """Callers of this month's customers, with the features that the champion's query gives them."""
        as_of = MONTHS[self._number - 1]
        with stage("features of this month's customers"):
            silver = self._known_at(as_of)
            rows = customers_at(self._platform, self._champion(), silver, as_of, SEED + self._number)
        url = self._url()
        if url is None:
            raise ContenderError("the endpoint has no address; the data plane is not up")
        return Callers(
            url=url,
            rows=rows[:CUSTOMERS],
            sticky=self._platform.environment.serving.gateway.sticky_header,
            file=self._requests(self._number),
            rate=rate,
        )

    def _known_at(self, as_of: datetime) -> Mapping[str, Snapshot]:
        """The valid rows of each source but the labels, as far as they were known at a moment."""
        labels = self._loaded.spec.labels
        standing = standing_champion(self._platform, self._loaded.name)
        found = {}
        for name, source in self._loaded.spec.sources.items():
            if labels is not None and name == labels.table:
                continue
            bronze = steps.ingest(self._loaded, self._platform, name, source, as_of)
            table = steps.validate(self._loaded, self._platform, name, bronze, standing, as_of)
            if table.silver is None:
                raise ContenderError(f"the data of {as_of:%B %Y} breaks its contract: table {name!r}")
            found[name] = table.silver
        return found

    def _monitored(self, month: int, traffic: TrafficSent, name: str) -> tuple[Monitored, ...]:
        """Each window of a month's traffic, looked at by `monitor`."""
        return tuple(
            self._step(f"{name}-{place}", Monitored, partial(self._monitor, month, window))
            for place, window in enumerate(traffic.windows, 1)
        )

    def _monitor(self, month: int, window: Window) -> Monitored:
        outcome = monitor(self._model, self._env, since=window.start, until=window.end)
        rows = [
            row
            for row in MonitoringTable(self._platform, self._loaded.name).rows()
            if row.window == outcome.window
        ]
        return Monitored(month=month, outcome=outcome, rows=tuple(rows))

    def _labels(self, month: int, known: datetime) -> LabelsCame:
        """What became of those who asked in a month, by request, as it was known later."""
        traffic = self._record.step(f"{month}-traffic", TrafficSent, self._never)
        truth = true_labels(self._loaded, self._platform, MONTHS[month - 1], known)
        asked = {
            request: customer
            for window in traffic.windows
            for request, customer in asked_within(self._requests(month), window).items()
        }
        file = self._record.folder / f"labels-{month}.csv"
        count = write_labels(file, asked, truth)
        add_labels(self._platform, self._loaded, file)
        positive = sum(truth[customer] for customer in asked.values() if customer in truth)
        return LabelsCame(of_month=month, known=known, labels=count, positive=positive)

    # Where things are

    def _champion(self) -> ChampionRef:
        found = standing_champion(self._platform, self._loaded.name)
        if not isinstance(found, ChampionRef):
            raise ContenderError(f"{self._loaded.name} has no champion, so nobody can be asked")
        return found

    def _url(self) -> str | None:
        name = self._platform.endpoint(self._loaded.name)
        url = self._platform.wait_for_endpoint(name).get("url")
        return str(url) if url else None

    def _requests(self, month: int) -> Path:
        return self._record.folder / f"requests-{month}.csv"


def trained_of(outcome: TrainOutcome, why: str = "") -> Trained:
    """The facts of a training."""
    metric = outcome.leaderboard.metric
    found, compared = outcome.evaluation.metrics[metric], outcome.evaluation.comparison
    pair = compared.metrics.get(metric) if compared else None
    return Trained(
        as_of=outcome.as_of,
        candidate=outcome.trained.candidate,
        metric=metric,
        value=found.value,
        low=found.low,
        high=found.high,
        rows=outcome.evaluation.rows,
        verdict=outcome.verdict,
        why=why,
        version=outcome.version.version if outcome.version else None,
        compared_with=compared.version if compared else None,
        champion_value=pair.champion if pair else None,
        report=outcome.reports.training,
        evidence=outcome.reports.evidence,
    )


def surprises(months: Sequence[Month]) -> tuple[str, ...]:
    """Where a life went another way than its story does; a busy machine can do that."""
    first, second, third, fourth = months
    found = []
    if not (first.released and first.released.promoted):
        found.append("month 1: no champion was released")
    if second.alerts:
        found.append(f"month 2: nothing had changed, and there was an alert: {', '.join(second.alerts)}")
    if not any(event.endswith("drift.detected") for event in third.alerts):
        found.append("month 3: the change was not detected")
    elif third.retrained is None or third.retrained.state != "promoted":
        state = third.retrained.state if third.retrained else "not begun"
        why = "; ".join(third.retrained.why) if third.retrained else ""
        found.append(f"month 3: the retraining was {state.replace('_', ' ')}{f': {why}' if why else ''}")
    if fourth.trained is not None and fourth.trained.version is None:
        found.append(f"month 4: the gates refused the challenger before anybody met it: {fourth.trained.why}")
    elif fourth.released is None or fourth.released.promoted:
        found.append("month 4: the challenger was not rolled back")
    failed = sum(one.failed for month in months for one in (month.traffic, month.release) if one)
    if failed:
        found.append(f"{failed:,} requests failed")
    return tuple(found)
