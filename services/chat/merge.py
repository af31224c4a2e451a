"""What one request does side by side: its choices, and thinking while the client is told so."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing, asynccontextmanager

from services.chat.admission import cancelled
from services.chat.answer import Piece
from services.chat.turn import Turn
from shared.vllm.client import gather_or_cancel


@asynccontextmanager
async def begun(work: Coroutine[None, None, None]) -> AsyncIterator[asyncio.Task[None]]:
    """`work`, whose first request to the engine is on its way when the block begins. It ends with
    the block at the latest."""
    task = asyncio.create_task(work)
    await asyncio.sleep(0)
    try:
        yield task
    finally:
        await cancelled(task)


async def merged(turn: Turn) -> AsyncGenerator[tuple[int, Piece]]:
    """The pieces of all choices as they come."""
    if turn.request.n == 1:
        async with aclosing(turn.answer(0)) as pieces:
            async for piece in pieces:
                turn.first_answer.see(piece)
                yield 0, piece
        return
    queue: asyncio.Queue[tuple[int, Piece] | None] = asyncio.Queue()

    async def pump(choice: int) -> None:
        async with aclosing(turn.answer(choice)) as pieces:
            async for piece in pieces:
                turn.first_answer.see(piece)
                await queue.put((choice, piece))

    async def pump_all() -> None:
        try:
            await gather_or_cancel(pump(choice) for choice in range(turn.request.n))
        finally:
            await queue.put(None)

    task = asyncio.create_task(pump_all())
    try:
        while (item := await queue.get()) is not None:
            yield item
        await task
    finally:
        await cancelled(task)
