"""Request snapshots: the state of a request during its generation, from which it continues with the same bits.

The prefix cache never contains one, since its states come from prefilled prompts.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from ..types.arrays import HostArray
from ..types.errors import StateFileError
from ..types.snapshot import Snapshot, SnapshotFormat, num_bytes, window_edges
from .state_file import check_arrays, pack, parse_length, shown, unpack

REQUEST_SNAPSHOT_FORMAT: Final = "roost-checkpoint-1"


@dataclass(frozen=True, eq=False, slots=True)
class RequestSnapshot:
    """State of a request that generates tokens.

    The sampler's state of a request follows from its prompt, its parameters and its tokens, so it is not stored.

    Attributes:
      num_tokens: Number of tokens that it has generated, at least one.
      snapshot: State after the prompt and all of these tokens except the last.
    """

    num_tokens: int
    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class RequestSnapshotFormat:
    """Format of one model's request snapshots as files.

    Attributes:
      engine: Identity of the model, and of everything that affects the last bits of a state. Other engines refuse the
        file.
      snapshot: Shapes and dtypes of snapshots.
    """

    engine: str
    snapshot: SnapshotFormat

    def export(self, request: RequestSnapshot, name: str, key: bytes | None = None) -> bytes:
        """Returns a request snapshot as a file.

        Args:
          name: Name by which the file is known, so that it cannot be replaced by another file.
          key: Key of the signature; None adds a digest that only detects accidental damage.
        """
        snapshot = request.snapshot
        facts = {
            "engine": self.engine,
            "name": name,
            "tokens": str(request.num_tokens),
            "length": str(snapshot.length),
        }
        arrays = self.snapshot.named(snapshot) | {"window": np.concatenate(snapshot.window)}
        return pack(arrays, facts, key, REQUEST_SNAPSHOT_FORMAT)

    def load(self, data: bytes, name: str, key: bytes | None = None) -> RequestSnapshot:
        """Returns the request snapshot in a file; see `export`.

        Raises:
          StateFileError: The file is broken, belongs to another engine, has another name, or is not signed with the
            key.
        """
        arrays, facts = unpack(data, key, REQUEST_SNAPSHOT_FORMAT)
        if facts.get("name") != name:
            raise StateFileError(f"is another file ({shown(facts.get('name'))})")
        if facts.get("engine") != self.engine:
            raise StateFileError(f"is of another engine ({facts.get('engine')}; this one is {self.engine})")
        num_tokens, length = (parse_length(facts.get(name, "")) for name in ("tokens", "length"))
        if not 0 < num_tokens <= length:
            raise StateFileError(f"has {num_tokens} generated tokens in a history of {length}")
        formats, (first, *edges) = self.snapshot, window_edges(length, self.snapshot.window)
        check_arrays(arrays, {**formats.recurrent, "window": formats.tokens(length - first)})
        blocks = np.split(arrays["window"], [edge - first for edge in edges[:-1]])
        return RequestSnapshot(num_tokens, Snapshot(length, formats.recurrent_of(arrays), tuple(blocks)))

    def example(self) -> RequestSnapshot:
        """Returns a request snapshot of the largest size, with random bytes in it."""
        draw = np.random.default_rng(0)

        def array(shape: tuple[int, ...], dtype: str) -> HostArray:
            return np.frombuffer(draw.bytes(num_bytes((shape, dtype))), dtype).reshape(shape)

        formats = self.snapshot
        recurrent = tuple(array(*each) for each in formats.recurrent.values())
        window = array(*formats.tokens(formats.window))
        return RequestSnapshot(1, Snapshot(formats.window, recurrent, (window,)))
