"""Checkpoints: the state of a request in the midst of its generation, from which it goes on with the same bits.

The prefix cache never holds one, as its states are those of prefilled prompts.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from ..core.arrays import HostArray
from ..core.config import PREFILL_BLOCK
from ..core.errors import StateFileError
from ..core.snapshot import Snapshot, SnapshotFormat, num_bytes
from .state_file import check_arrays, pack, parse_length, shown, unpack

CHECKPOINT_FORMAT: Final = "roost-checkpoint-1"


@dataclass(frozen=True, eq=False, slots=True)
class RequestCheckpoint:
    """State of a request that generates tokens.

    What the sampler knows about a request follows from its prompt, its parameters and its tokens, so it is not stored.

    Attributes:
      num_tokens: Number of tokens that it has generated, at least one.
      snapshot: State after the prompt and all of these tokens but the last one.
    """

    num_tokens: int
    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class CheckpointFormat:
    """Format of one model's checkpoints as files.

    Attributes:
      engine: Identity of the model, and of what decides the last bits of a state. Other engines refuse the file.
      snapshot: Shapes and dtypes of snapshots.
    """

    engine: str
    snapshot: SnapshotFormat

    def export(self, checkpoint: RequestCheckpoint, name: str, key: bytes | None = None) -> bytes:
        """Returns a checkpoint as a file.

        Args:
          checkpoint: The checkpoint.
          name: Name by which the file is known, so that no other file can take its place.
          key: Key of the signature; None adds a digest that only detects accidents.
        """
        snapshot, (h, conv) = checkpoint.snapshot, checkpoint.snapshot.recurrent
        facts = {
            "engine": self.engine,
            "name": name,
            "tokens": str(checkpoint.num_tokens),
            "length": str(snapshot.length),
        }
        return pack({"h": h, "conv": conv, "window": np.concatenate(snapshot.window)}, facts, key, CHECKPOINT_FORMAT)

    def load(self, data: bytes, name: str, key: bytes | None = None) -> RequestCheckpoint:
        """Returns the checkpoint in a file; see `export`.

        Raises:
          StateFileError: The file is broken, of another engine, another one than named, or not signed with the key.
        """
        arrays, facts = unpack(data, key, CHECKPOINT_FORMAT)
        if facts.get("name") != name:
            raise StateFileError(f"is another file ({shown(facts.get('name'))})")
        if facts.get("engine") != self.engine:
            raise StateFileError(f"is of another engine ({facts.get('engine')}; this one is {self.engine})")
        num_tokens, length = (parse_length(facts.get(name, "")) for name in ("tokens", "length"))
        if not 0 < num_tokens <= length:
            raise StateFileError(f"has {num_tokens} generated tokens in a history of {length}")
        rows, (shape, dtype) = min(length, self.snapshot.window), self.snapshot.token
        wanted = {"h": self.snapshot.h, "conv": self.snapshot.conv, "window": ((rows, *shape), dtype)}
        check_arrays(arrays, wanted)
        first = length - rows
        edges = range(first // PREFILL_BLOCK * PREFILL_BLOCK + PREFILL_BLOCK, length, PREFILL_BLOCK)
        blocks = np.split(arrays["window"], [edge - first for edge in edges])
        return RequestCheckpoint(num_tokens, Snapshot(length, (arrays["h"], arrays["conv"]), tuple(blocks)))

    def example(self) -> RequestCheckpoint:
        """Returns a checkpoint of the largest size, with random bytes in it."""
        draw = np.random.default_rng(0)

        def array(shape: tuple[int, ...], dtype: str) -> HostArray:
            return np.frombuffer(draw.bytes(num_bytes((shape, dtype))), dtype).reshape(shape)

        window = array((self.snapshot.window, *self.snapshot.token[0]), self.snapshot.token[1])
        return RequestCheckpoint(
            1, Snapshot(self.snapshot.window, (array(*self.snapshot.h), array(*self.snapshot.conv)), (window,))
        )
