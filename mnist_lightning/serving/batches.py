"""Many requests, one forward: what came in while the network was busy goes through it together."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Question = TypeVar("Question")
Reply = TypeVar("Reply")


class Batches(Generic[Question, Reply]):
    """Calls `function` with what is waiting, at most `most` at a time, in a thread of its own.

    Nobody waits for a batch to fill: a lone question goes at once, and while it is answered the next ones gather.

    Args:
        function: Replies to questions, one each, in their order.
        most: The most questions of one call.
        noted: Is told how many questions each call had.
        starting: Called once in that thread before the first call.
    """

    def __init__(
        self,
        function: Callable[[Sequence[Question]], Sequence[Reply]],
        most: int = 256,
        noted: Callable[[int], None] = lambda count: None,
        starting: Callable[[], None] = lambda: None,
    ) -> None:
        self._function, self._most, self._noted = function, most, noted
        self._thread = ThreadPoolExecutor(1, "forward", starting)
        self._waiting: list[tuple[Question, asyncio.Future[Reply]]] = []
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, questions: Sequence[Question]) -> list[Reply]:
        """The replies, in order; raises what `function` raised."""
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in questions]
        self._waiting += zip(questions, futures, strict=True)
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._answer())
        return list(await asyncio.gather(*futures))

    async def _answer(self) -> None:
        """Until nobody waits any more."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            self._noted(len(batch))
            try:
                replies = await loop.run_in_executor(self._thread, self._function, [question for question, _ in batch])
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), reply in zip(batch, replies, strict=True):
                if not future.done():  # its client has gone
                    future.set_result(reply)

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown()
