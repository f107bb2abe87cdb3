"""A hundred requests at once: the server batches them over its slots, and queues those for which none is free."""

import asyncio
import time

from openai import AsyncOpenAI

client = AsyncOpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none", timeout=600)


async def total(first: int) -> tuple[str, int]:
    """Returns the answer to a sum, and the number of its tokens."""
    messages = [{"role": "user", "content": f"What is {first % 10} plus {first // 10}?"}]
    answer = await client.chat.completions.create(model="demo", messages=messages, temperature=0)
    return answer.choices[0].message.content or "", answer.usage.completion_tokens


async def main() -> None:
    """Asks everything at once."""
    began = time.monotonic()
    answers = await asyncio.gather(*map(total, range(100)))
    seconds = time.monotonic() - began
    tokens = sum(count for _, count in answers)
    print(f"{len(answers)} answers with {tokens} tokens in {seconds:.1f} s, such as {answers[34][0]!r}")


asyncio.run(main())
