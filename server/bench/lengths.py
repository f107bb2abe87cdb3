"""How long prompts and answers are."""

import random
import re
from dataclasses import dataclass

from ..settings import SettingsError


@dataclass(frozen=True, slots=True)
class LengthRange:
    """Every length from `low` to `high`, both included, is as likely as any other."""

    low: int
    high: int

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}:{self.high}"

    @classmethod
    def parse(cls, option: str, text: str) -> "LengthRange":
        """Reads `512` or `100:900`.

        Raises:
          SettingsError: it is neither.
        """
        found = re.fullmatch(r"(\d{1,9})(?::(\d{1,9}))?", text)
        low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= low <= high:
            raise SettingsError(f"{option} {text!r}: give a length such as 512, or the ends of a range such as 100:900")
        return cls(low, high)

    def draw(self, chance: random.Random) -> int:
        return chance.randint(self.low, self.high)
