"""Who ends a release from outside, and what becomes of its traffic then."""

from types import SimpleNamespace

import pytest
from prefect._internal.concurrency.cancellation import CancelledError
from prefect.exceptions import TerminationSignal

from flows.release import LeftError, _carried_on, _Held
from tasks.release_record import State


class Interrupted:
    """A controller whose next step is cut short, and whether it was told to give the traffic back."""

    def __init__(self, by):
        self.release = SimpleNamespace(history=(), state=State.CANARY)
        self.ended, self.abandoned, self._by = False, False, by

    def step(self):
        raise self._by

    def abandon(self):
        self.abandoned = True


@pytest.mark.parametrize(
    ("by", "abandoned"),
    [
        (CancelledError(), True),
        (TerminationSignal(15), True),
        (KeyboardInterrupt(), True),
        (OSError("the disk is full"), True),
        (LeftError("left to the lease"), False),
    ],
    ids=["its place was lost", "told to end", "interrupted", "broken", "left"],
)
def test_whatever_ends_a_release_gives_the_champion_all_traffic_unless_it_is_left_to_the_lease(by, abandoned):
    control = Interrupted(by)

    with pytest.raises(type(by)):
        _carried_on(_Held(control))

    assert control.abandoned is abandoned
