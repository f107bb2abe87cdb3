"""Batch backend of servers with OpenAI's API. `LocalBatch` has the same methods."""

import asyncio
from collections.abc import Sequence
from typing import Final

import orjson

from ....client import Address, ClientError, HttpClient, Response, first_model
from ....terminal.exits import CommandError
from ..batch_lines import BatchLine


class NoResponseError(Exception):
    """No server has responded to a line. The line should be sent again."""


_TIMEOUT_S: Final = 24 * 3600.0
"""Timeout of a whole response: servers have their own limits, and the user can press Ctrl-C."""

_AWAY_S: Final = 2.0
"""Seconds for which a server that cannot be reached gets no more lines, if another one can be reached."""


class _Server:
    """A server, with the number of lines that it works on.

    Attributes:
      num_open: Number of lines that were sent to it and have no response yet.
      away_until: Time until which other servers are preferred, on the event loop's clock.
    """

    def __init__(self, address: Address, api_key: str | None) -> None:
        self.address = address
        self.client = HttpClient(address, api_key, _TIMEOUT_S)
        self.num_open = 0
        self.away_until = 0.0


class ServerBatch:
    """Sends each line to the server with the fewest open lines.

    Attributes:
      concurrency: Number of lines to send at the same time to all servers together.

    Args:
      addresses: Addresses of the servers, which serve the same model.
      api_key: Key of all servers; None sends none.
      concurrency: Number of lines to send to each server at the same time.
    """

    def __init__(self, addresses: Sequence[Address], api_key: str | None, concurrency: int) -> None:
        self.concurrency = concurrency * len(addresses)
        self._servers = [_Server(address, api_key) for address in addresses]

    async def start(self) -> None:
        """Requests the servers' models, to find a wrong key or address early.

        Raises:
          CommandError: No server responds, or they refuse the key.
        """
        models = [first_model(server.client) for server in self._servers]
        results = await asyncio.gather(*models, return_exceptions=True)
        errors = [result for result in results if isinstance(result, BaseException)]
        if len(errors) == len(results):
            raise errors[0]

    async def send(self, line: BatchLine) -> Response:
        """Returns the response to a line, with its whole body.

        Raises:
          NoResponseError: No response arrived. Sending the line again may succeed.
          CommandError: No further line will get a response.
        """
        now = asyncio.get_running_loop().time
        server = min(self._servers, key=lambda each: (each.away_until > now(), each.num_open))
        server.num_open += 1
        try:
            response = await server.client.post(line.url, orjson.Fragment(line.body))
        except ClientError as error:
            server.away_until = now() + _AWAY_S
            raise NoResponseError(f"{server.address.authority}: {error}") from None
        finally:
            server.num_open -= 1
        if response.status == 401:
            raise CommandError(f"{server.address.authority} refuses the key; give it in ROOST_API_KEY")
        return response

    async def close(self) -> None:
        """Closes all connections."""
        for server in self._servers:
            await server.client.close()
