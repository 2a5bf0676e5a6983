"""What the fake engine's own tests ask it."""

from collections.abc import Awaitable, Callable

from tests.engine_contract.raw import RawAnswer, RawClient, post

CHAT = "/v1/chat/completions"
QUESTION = {"messages": [{"role": "user", "content": "Where does the water go?"}], "stream": True}
STREAMED = post(CHAT, QUESTION, "x-request-id: one")
WHOLE = post(CHAT, {**QUESTION, "stream": False}, "x-request-id: one")
#: A role chunk, eight tokens (the last one has no text) and [DONE].
EVENTS = 10

Connect = Callable[[], Awaitable[RawClient]]


async def ask(connect: Connect, request: bytes = STREAMED) -> RawAnswer:
    async with await connect() as client:
        return await client.ask(request)
