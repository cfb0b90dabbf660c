"""Whoever is answered together is answered as if alone, in order, in time, and not at all when too many wait."""

import asyncio
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.batching import BATCH_ROWS, Batcher, QueueFullError, TooLateError, one_row_seconds
from serving.engine import Answers

SLOW = 0.01


class Doubling:
    """Doubles x; refuses NaN; may be held up, and says what it was asked."""

    name = "doubling"

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.free = threading.Event()
        self.free.set()
        self.began = threading.Event()

    def predict(self, columns, rows):
        self.began.set()
        assert self.free.wait(10)
        self.asked.append(rows)
        if np.isnan(columns["x"]).any():
            raise ValueError("NaN")
        return Answers(columns["x"] * 2, columns["x"] / 7)


def batcher(engine, *, one_row=SLOW, queue=100, timeout=10.0) -> Batcher:
    return Batcher(engine, one_row=one_row, queue=queue, timeout=timeout)


def columns(*values):
    return {"x": np.array(values, dtype=float)}


async def asked(one: Batcher, requests):
    return await asyncio.gather(
        *(one.predict(columns(*values), len(values)) for values in requests), return_exceptions=True
    )


async def until(condition) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came true")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), min_size=1, max_size=12))
def test_answers_in_batches_are_the_answers_alone(requests) -> None:
    engine, alone = Doubling(), Doubling()
    one = batcher(engine)

    found = asyncio.run(asked(one, requests))
    one.close()

    for values, answers in zip(requests, found, strict=True):
        expected = alone.predict(columns(*values), len(values))
        np.testing.assert_array_equal(answers.predictions, expected.predictions)
        np.testing.assert_array_equal(answers.scores, expected.scores)
    assert sum(engine.asked) == sum(map(len, requests))


async def held_up(engine, one, requests):
    """Requests that all arrive while the engine works on a first one."""
    engine.free.clear()
    first = asyncio.ensure_future(one.predict(columns(1.0), 1))
    await asyncio.to_thread(engine.began.wait, 10)
    waiting = asyncio.ensure_future(asked(one, requests))
    await until(lambda: one.waiting == len(requests))
    engine.free.set()
    await first
    return await waiting


def test_what_arrives_while_the_engine_works_is_its_next_batch() -> None:
    engine = Doubling()
    one = batcher(engine)

    asyncio.run(held_up(engine, one, [[2.0], [3.0, 4.0], [5.0]]))
    one.close()

    assert engine.asked == [1, 4]
    assert (one.batches, one.batched_rows) == (2, 5)


def test_a_batch_has_a_bounded_number_of_rows_unless_one_request_alone_has_more() -> None:
    engine = Doubling()
    one = batcher(engine)
    half = [1.0] * (BATCH_ROWS // 2)

    asyncio.run(held_up(engine, one, [half, half, half, half * 3, [1.0]]))
    one.close()

    assert engine.asked == [1, BATCH_ROWS, BATCH_ROWS // 2, BATCH_ROWS // 2 * 3, 1]


def test_a_poisonous_request_fails_alone() -> None:
    engine = Doubling()
    one = batcher(engine)

    good, bad, other = asyncio.run(held_up(engine, one, [[2.0], [float("nan")], [3.0]]))
    one.close()

    assert good.predictions.tolist() == [4.0]
    assert isinstance(bad, ValueError)
    assert other.predictions.tolist() == [6.0]


def test_a_model_that_ends_its_process_for_one_request_answers_those_beside_it() -> None:
    class Leaving(Doubling):
        def predict(self, columns, rows):
            answers = super().predict(columns, rows)
            if (columns["x"] < 0).any():
                raise SystemExit(3)
            return answers

    engine = Leaving()
    one = batcher(engine)

    good, bad, other = asyncio.run(held_up(engine, one, [[2.0], [-1.0], [3.0]]))
    one.close()

    assert good.predictions.tolist() == [4.0]
    assert "SystemExit" in str(bad)
    assert other.predictions.tolist() == [6.0]


def test_a_full_queue_refuses_and_says_when_to_come_again() -> None:
    engine = Doubling()
    one = batcher(engine, one_row=2.0, queue=2)

    async def scenario():
        engine.free.clear()
        first = asyncio.ensure_future(one.predict(columns(1.0), 1))
        await asyncio.to_thread(engine.began.wait, 10)
        waiting = asyncio.ensure_future(asked(one, [[2.0], [3.0]]))
        await until(lambda: one.waiting == 2)
        with pytest.raises(QueueFullError) as caught:
            await one.predict(columns(4.0), 1)
        engine.free.set()
        await first
        return caught.value, await waiting

    error, others = asyncio.run(scenario())
    one.close()

    assert error.retry_after_seconds == 4
    assert [answers.predictions.tolist() for answers in others] == [[4.0], [6.0]]


def test_what_waited_too_long_is_never_done() -> None:
    engine = Doubling()
    one = batcher(engine, timeout=0.3)

    async def scenario():
        engine.free.clear()
        found = await asked(one, [[1.0], [2.0], [3.0]])
        waiting = one.waiting
        engine.free.set()
        later = await one.predict(columns(4.0), 1)
        return found, waiting, later

    found, waiting, later = asyncio.run(scenario())
    one.close()

    assert [type(error) for error in found] == [TooLateError] * 3
    assert waiting == 0
    assert later.predictions.tolist() == [8.0]
    assert engine.asked == [1, 1]


def test_time_that_is_over_already_counts() -> None:
    engine = Doubling()
    one = batcher(engine, timeout=5.0)

    async def scenario():
        engine.free.clear()
        try:
            with pytest.raises(TooLateError):
                await one.predict(columns(1.0), 1, 5.0)
        finally:
            engine.free.set()

    asyncio.run(scenario())
    one.close()


def test_a_cancelled_request_leaves_the_queue() -> None:
    engine = Doubling()
    one = batcher(engine)

    async def scenario():
        engine.free.clear()
        first = asyncio.ensure_future(one.predict(columns(1.0), 1))
        second = asyncio.ensure_future(one.predict(columns(2.0), 1))
        await until(lambda: one.waiting == 1)
        second.cancel()
        await until(lambda: one.waiting == 0)
        engine.free.set()
        await first

    asyncio.run(scenario())
    one.close()

    assert engine.asked == [1]


def test_columns_of_unlike_types_are_not_joined() -> None:
    class Types(Doubling):
        def predict(self, columns, rows):
            super().predict(columns, rows)
            return Answers(np.array([columns["x"].dtype.str] * rows), None)

    engine = Types()
    one = batcher(engine)

    async def scenario():
        engine.free.clear()
        first = asyncio.ensure_future(one.predict(columns(1.0), 1))
        await asyncio.to_thread(engine.began.wait, 10)
        whole = asyncio.ensure_future(one.predict({"x": np.array([2**62 + 1])}, 1))
        broken = asyncio.ensure_future(one.predict(columns(float("inf")), 1))
        await until(lambda: one.waiting == 2)
        engine.free.set()
        await first
        return (await whole).predictions.tolist(), (await broken).predictions.tolist()

    assert asyncio.run(scenario()) == (["<i8"], ["<f8"])
    one.close()


@pytest.mark.parametrize("error", [StopIteration(), KeyError("x"), MemoryError(), SystemExit(3)])
def test_whatever_an_engine_raises_reaches_its_caller_and_the_next_is_answered(error) -> None:
    class Failing(Doubling):
        def predict(self, columns, rows):
            if columns["x"][0] < 0:
                raise error
            return super().predict(columns, rows)

    one = batcher(Failing())

    async def scenario():
        return [await asked(one, [[-1.0]]), await asked(one, [[1.0]])]

    (failed,), (answered,) = asyncio.run(scenario())
    one.close()

    assert isinstance(failed, Exception)
    assert answered.predictions.tolist() == [2.0]


def test_an_engine_that_does_not_come_back_is_stuck() -> None:
    engine = Doubling()
    one = batcher(engine, timeout=0.05)

    async def scenario():
        engine.free.clear()
        late = asyncio.ensure_future(one.predict(columns(1.0), 1))
        before = one.stuck
        await until(lambda: one.stuck)
        engine.free.set()
        await until(lambda: not one.stuck)
        return before, await asyncio.gather(late, return_exceptions=True)

    before, (late,) = asyncio.run(scenario())
    one.close()

    assert not before
    assert isinstance(late, TooLateError)


def test_answers_of_another_number_than_rows_reach_nobody() -> None:
    class Short(Doubling):
        def predict(self, columns, rows):
            return Answers(np.zeros(max(rows - 1, 1)), None)

    engine = Short()
    one = batcher(engine)

    first, second = asyncio.run(asked(one, [[1.0, 2.0], [3.0, 4.0]]))
    one.close()

    assert isinstance(first, ValueError)
    assert isinstance(second, ValueError)
    with pytest.raises(ValueError, match="1 predictions for 2 rows"):
        batcher(engine, one_row=0.0).at_once(columns(1.0, 2.0), 2)


def test_a_fast_engine_answers_small_requests_at_once_and_large_ones_in_its_thread() -> None:
    one = batcher(Doubling(), one_row=0.0001)

    assert one.rows_at_once == 20
    assert one.at_once(columns(*[1.0] * 20), 20).predictions.tolist() == [2.0] * 20
    assert one.at_once(columns(*[1.0] * 21), 21) is None


def test_nothing_is_answered_at_once_while_the_thread_works_or_by_a_slow_engine() -> None:
    engine = Doubling()
    one = batcher(engine, one_row=0.0001)

    async def scenario():
        engine.free.clear()
        large = asyncio.ensure_future(one.predict(columns(*[1.0] * 21), 21))
        await asyncio.to_thread(engine.began.wait, 10)
        small = one.at_once(columns(1.0), 1)
        engine.free.set()
        await large
        return small

    assert asyncio.run(scenario()) is None
    one.close()
    assert batcher(engine, one_row=SLOW).at_once(columns(1.0), 1) is None


def test_the_time_for_one_row_is_measured_on_one_row() -> None:
    class Sleeping(Doubling):
        def predict(self, columns, rows):
            time.sleep(0.002 * rows)
            return super().predict(columns, rows)

    engine = Sleeping()

    assert one_row_seconds(engine, columns(1.0, 2.0, 3.0)) >= 0.002
    assert set(engine.asked) == {1}
