"""Decides when states are moved to earlier slots, so that a decode step of fewer rows suffices."""


class Compaction:
    """Weighs moves of states against the idle rows that decode steps compute without them.

    States move once the idle rows of the steps since a smaller step would have sufficed outweigh the moves. If the load
    hovers at the number of rows of a compiled step, most states stay until they end.

    Args:
      idle_rows_per_move: Number of idle rows, summed over decode steps, that outweigh one move; 0 for moves that
        cost nothing.
    """

    def __init__(self, idle_rows_per_move: int) -> None:
        self._idle_rows_per_move = idle_rows_per_move
        self._num_idle_rows = 0

    def is_due(self, num_rows: int, fewest_rows: int, num_moves: int) -> bool:
        """Returns whether states move before the next decode step, and counts its idle rows if they do not.

        Args:
          num_rows: Number of rows of the step without moves.
          fewest_rows: Number of rows that would suffice.
          num_moves: Number of states that would move.
        """
        if num_rows <= fewest_rows:
            self._num_idle_rows = 0
            return False
        self._num_idle_rows += num_rows - fewest_rows
        is_due = self._num_idle_rows >= self._idle_rows_per_move * num_moves
        if is_due:
            self._num_idle_rows = 0
        return is_due
