"""What waits goes together, in order; what goes wrong reaches those whom it concerns."""

import asyncio
import threading

import pytest

from mnist_lightning.serving.batches import Batches


def test_a_lone_question_goes_at_once_and_those_that_come_meanwhile_go_together():
    calls, sizes, go = [], [], threading.Event()

    def double(questions):
        calls.append(list(questions))
        go.wait(10)
        return [2 * question for question in questions]

    async def ask():
        batches = Batches(double, most=4, noted=sizes.append)
        first = asyncio.create_task(batches([1]))
        while not calls:
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(batches([n, -n])) for n in (2, 3, 4)]
        await asyncio.sleep(0)
        go.set()
        answers = await asyncio.gather(first, *others)
        batches.close()
        return answers

    assert asyncio.run(ask()) == [[2], [4, -4], [6, -6], [8, -8]]
    assert calls == [[1], [2, -2, 3, -3], [4, -4]]
    assert sizes == [1, 4, 2]


def test_an_error_is_raised_where_it_was_asked_and_the_next_question_is_answered():
    def half(questions):
        return [1 / question for question in questions]

    async def ask():
        batches = Batches(half)
        with pytest.raises(ZeroDivisionError):
            await batches([0])
        answer = await batches([4])
        batches.close()
        return answer

    assert asyncio.run(ask()) == [0.25]


def test_a_question_whose_client_has_gone_harms_nobody():
    go = threading.Event()

    def same(questions):
        go.wait(10)
        return questions

    async def ask():
        batches = Batches(same)
        gone, stays = asyncio.create_task(batches([1])), asyncio.create_task(batches([2]))
        await asyncio.sleep(0.01)
        gone.cancel()
        go.set()
        answer = await stays
        batches.close()
        return answer

    assert asyncio.run(ask()) == [2]
