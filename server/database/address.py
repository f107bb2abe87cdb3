"""Address of a store: `memory:`, `sqlite:///FILE` or `postgresql://…`."""

import re
from dataclasses import dataclass, field
from typing import Final, Literal

_PASSWORD: Final = re.compile(r"(?<=://)([^/@?#]*?):[^/?#]*@(?=[^@]*$)|(?<=[?&]password=)[^&#]*")
"""Password of a URL, either in front of the host or among the parameters."""


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """An address that `--store` takes. Its text never shows a password.

    Attributes:
      kind: Kind of database.
      target: Path of SQLite's file, or PostgreSQL's connection URL; empty for memory.
    """

    kind: Literal["memory", "sqlite", "postgresql"]
    target: str = field(default="", repr=False)

    @classmethod
    def parse(cls, text: str) -> "StoreAddress":
        """Returns the address that a text names.

        Raises:
          ValueError: The text is not an address of a store. The message does not repeat it.
        """
        scheme, _, rest = text.partition(":")
        if text == "memory:":
            return cls("memory")
        if scheme == "sqlite" and rest.startswith("///") and rest != "///":
            return cls("sqlite", f"/{rest.lstrip('/')}")
        if scheme in ("postgresql", "postgres") and rest.startswith("//"):
            return cls("postgresql", f"postgresql:{rest}")
        raise ValueError(
            "must be memory:, sqlite:///FILE with an absolute path, or postgresql://USER:PASSWORD@HOST/NAME"
        )

    def __str__(self) -> str:
        match self.kind:
            case "memory":
                return "memory:"
            case "sqlite":
                return f"sqlite://{self.target}"
        return _PASSWORD.sub(lambda found: f"{found[1]}:***@" if found[1] is not None else "***", self.target)
