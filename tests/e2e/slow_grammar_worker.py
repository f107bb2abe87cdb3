"""The worker of grammar processes, of which every reply comes late: up to `SLOW_S` seconds, evenly distributed."""

import random
import sys
import time
from typing import Final

from roost.server.constraints.grammar_worker import follow
from roost.server.constraints.grammar_worker.__main__ import main
from roost.server.constraints.grammar_worker.protocol import Frame

SLOW_S: Final = 0.03


def slow_down() -> None:
    write, draw = follow.Server.write, random.Random(7)

    def late(self: follow.Server, frame: Frame) -> None:
        time.sleep(draw.uniform(0, SLOW_S))
        write(self, frame)

    follow.Server.write = late


if __name__ == "__main__":
    slow_down()
    sys.exit(main())
