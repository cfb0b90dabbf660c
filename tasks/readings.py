"""How the looks of a release are told to people: stretches of looks, names and units of tests, and what they said.

Looks go in, oldest first; nothing is measured or decided here.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from deployments.release import Effect, ReleasePlan
from tasks.release_record import Look, Reading, State
from tasks.verdict import Verdict

__all__ = [
    "ARMS",
    "Test",
    "goes_on",
    "interval",
    "last_readings",
    "measured",
    "requests_seen",
    "stage",
    "stretches",
    "summary",
    "threshold",
    "told",
]

ARMS = ("challenger", "champion")

_MISSING = "–"
_WORST_FIRST = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS)


@dataclass(frozen=True)
class Test:
    """What a test is called by people, and the unit of its estimate: `scale` times it is in `unit`.

    `signed` says that the estimate is a difference, `around_share` that it is compared with the challenger's share.
    """

    __test__ = False

    kind: str
    label: str
    what: str
    scale: float = 1.0
    unit: str = ""
    signed: bool = True
    around_share: bool = False

    @classmethod
    def named(cls, name: str) -> "Test":
        """The test that a reading names, by its plan's key or as the analysis calls it."""
        plain = name.replace("_", " ").strip().lower()
        if plain.startswith("latency"):
            quantile = plain.removeprefix("latency").strip()
            return cls(
                "latency", f"Latency {quantile}".strip(), "challenger over champion, less 100 %", 100.0, " %"
            )
        if plain == "error rate":
            return cls("error_rate", "Error rate", "challenger less champion", 100.0, " pp")
        if plain == "sample ratio":
            return cls(
                "sample_ratio",
                "Sample ratio",
                "the challenger's part of the requests",
                100.0,
                " %",
                signed=False,
                around_share=True,
            )
        if plain in {"scores", "score distribution"}:
            return cls(
                "scores",
                "Score distribution",
                "distance of the distributions; in shadow, of pairs",
                signed=False,
            )
        if plain == "paired score":
            return cls("scores", "Paired score", "mean difference of the scores of one request")
        if plain == "quality":
            return cls("quality", "Quality on labels", "mean loss, challenger less champion")
        return cls(plain.replace(" ", "_"), name[:1].upper() + name[1:].replace("_", " "), "")

    @property
    def two_sided(self) -> bool:
        """Whether a distance in either direction would be harm."""
        return self.around_share or self.label == "Paired score"

    def centre(self, look: Look) -> float:
        """What the estimate is compared with: nothing, or the part of the requests that the challenger should have.

        Where one arm answers everything and the other copies of it, that part is one of both arms' answers.
        """
        if not self.around_share:
            return 0.0
        part = look.percentage / 100
        copies = part / (1 + part)
        if look.state is State.CANARY:
            return part if part < 1 else 1 - copies
        return copies

    def harm(self, plan: ReleasePlan, look: Look) -> Effect | None:
        """What the plan says of it, in the unit of the estimate; None where the plan has no such test.

        The sample ratio's is a part of the smaller share, so it depends on the state the look was made in.
        """
        found = getattr(plan.analysis, self.kind, None)
        if not isinstance(found, Effect):
            return None
        share = self.centre(look)
        smaller = min(share, 1 - share) if self.around_share else 1.0
        if smaller <= 0:
            return None
        return Effect(effect=found.effect * smaller, tolerated=found.tolerated * smaller)


def measured(test: Test, value: float) -> str:
    """One value of a test with its unit."""
    if math.isnan(value):
        return _MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    scaled = value * test.scale
    digits = 1 if test.scale == 100.0 and abs(scaled) >= 10 else 2 if test.scale == 100.0 else 4
    # A difference too small to be shown is none, and has no sign.
    scaled = round(scaled, digits) + 0.0
    return f"{scaled:{'+' if test.signed and scaled else ''},.{digits}f}{test.unit}"


def threshold(test: Test, value: float) -> str:
    """A size that the plan names, with its unit and no digit more than it was given."""
    return f"{'± ' if test.two_sided else ''}{value * test.scale:.4g}{test.unit}"


def interval(reading: Reading) -> str:
    """The confidence interval of a reading, in its unit."""
    test = Test.named(reading.test)
    low, high = measured(test, reading.low), measured(test, reading.high)
    return f"{low.removesuffix(test.unit) if high.endswith(test.unit) else low} to {high}"


def goes_on(before: tuple[str, int, int], after: tuple[str, int, int]) -> bool:
    """Whether a look belongs to the stretch of the one before it, by state, step and requests of both arms.

    A state that was entered again, as after a crash, counts anew, so its requests become fewer.
    """
    return before[:2] == after[:2] and after[2] >= before[2]


def stretches(looks: Iterable[Look]) -> list[list[Look]]:
    """Looks that belong together: of one state, entered once; each counts from its beginning."""
    found: list[list[Look]] = []
    before: tuple[str, int, int] | None = None
    for look in looks:
        mark = (look.state.value, look.step, sum(look.requests.values()))
        if before is not None and goes_on(before, mark):
            found[-1].append(look)
        else:
            found.append([look])
        before = mark
    return found


def requests_seen(looks: Iterable[Look]) -> dict[str, int]:
    """How many requests each arm answered over all looks; the challenger's include its copies in shadow."""
    total = dict.fromkeys(ARMS, 0)
    for stretch in stretches(looks):
        for arm, count in stretch[-1].requests.items():
            total[arm] = total.get(arm, 0) + count
    return total


def last_readings(looks: Iterable[Look]) -> list[tuple[Look, Reading]]:
    """The last reading of each test and the look it was made in, the worst first."""
    last = {reading.test: (look, reading) for look in looks for reading in look.readings}
    return sorted(last.values(), key=lambda found: _WORST_FIRST.index(found[1].verdict))


def stage(state: State, percentage: int) -> str:
    """A state with its share, in few words."""
    if state is State.CANARY:
        return f"canary {percentage} %"
    return "rolled back" if state is State.ROLLED_BACK else state.value


def summary(looks: Sequence[Look]) -> str:
    """What the analysis saw in the end, in one line: the tests that stopped it, or that all passed.

    Looks after a promotion count once they fail; until then they decide nothing.
    """
    read = [look for look in looks if look.readings]
    before = [look for look in read if look.state is not State.PROMOTED]
    if not read:
        return "nothing was analysed"
    look = read[-1] if read[-1].verdict is Verdict.FAIL or not before else before[-1]
    # A test that a step does not wait for may be undecided where the look as a whole passes.
    if look.verdict is Verdict.PASS:
        return "all tests passed"
    said = ", ".join(told(one) for one in look.readings if one.verdict is look.verdict) or look.note
    what = "failed" if look.verdict is Verdict.FAIL else "undecided"
    return f"{what} in {stage(look.state, look.percentage)}{f': {said}' if said else ''}"


def told(reading: Reading) -> str:
    """A reading in few words: its test, its estimate and its interval."""
    test = Test.named(reading.test)
    return f"{test.label} {measured(test, reading.estimate)} ({interval(reading)})"
