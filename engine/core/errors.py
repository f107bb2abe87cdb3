"""What can go wrong between a request and its tokens. The server maps this tree to HTTP once, at the border."""


class RoostError(Exception):
    """The root: every error that Roost raises on purpose. Its text is one line, fit to show to a user."""


class ConfigError(RoostError):
    """A setting, a config file or a checkpoint is wrong; raised before the engine is ready."""


class CheckpointError(ConfigError):
    """A checkpoint cannot be loaded; the text names the file or the tensor and what was expected."""


class StateFileError(RoostError):
    """A saved state cannot be used: it is broken, unsigned, of another version or another model. Its text goes on a
    sentence that begins with the file."""


class UnknownRequestError(RoostError):
    """No request of that id runs, or has ended lately."""


class ParameterError(RoostError, ValueError):
    """A sampling parameter is out of range or contradicts another one.

    Args:
      field: the parameter's name.
      rule: the rest of the sentence, which says what the parameter must be.
    """

    def __init__(self, field: str, rule: str) -> None:
        super().__init__(f"{field} must {rule}")
        self.field = field


class QueueFullError(RoostError):
    """The waiting queue is full: try again later.

    Args:
      retry_after_s: when there will probably be room.
    """

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueTimeoutError(RoostError):
    """A request got no slot in the time that it would wait for one."""


class RequestTimeoutError(RoostError):
    """A request was not done in the time that it had."""


class RequestFailedError(RoostError):
    """The engine failed on one request alone; only that request ends."""


class NumericError(RoostError):
    """The activations of a request are not finite any more; only that request ends.

    Args:
      is_of_import: whether the request went on from an imported state, which may be the cause.
    """

    def __init__(self, message: str, *, is_of_import: bool = False) -> None:
        super().__init__(message)
        self.is_of_import = is_of_import


class ConstraintError(RoostError):
    """What decides which tokens may come in a request has failed; only that request ends."""


class EngineDeadError(RoostError):
    """The engine's state is gone (an exception inside a step) or it was stopped; no request can go on."""
