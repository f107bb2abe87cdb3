"""Errors of the engine. The server maps them to HTTP in one place.

Exported errors appear in tracebacks under the name by which users catch them.
"""


class RoostError(Exception):
    """Base class of all errors that Roost raises. The message is one line that may be shown to a user."""

    __module__ = "roost"


class ConfigError(RoostError):
    """A setting, a config file or a checkpoint is invalid; raised before the engine is ready."""

    __module__ = "roost"


class CheckpointError(ConfigError):
    """A checkpoint cannot be loaded. The message names the file or tensor and the expected content."""

    __module__ = "roost"


class StateFileError(RoostError):
    """A saved state cannot be used: it is broken, unsigned, or belongs to another version or model.

    The message continues a sentence that begins with the file's name.
    """

    __module__ = "roost"


class UnknownRequestError(RoostError):
    """No request with this id is running or ended recently."""


class ParameterError(RoostError, ValueError):
    """A sampling parameter is out of range or contradicts another one.

    Args:
      field: Name of the parameter.
      rule: Requirement on the parameter, such as "be at least 0".
    """

    def __init__(self, field: str, rule: str) -> None:
        super().__init__(f"{field} must {rule}")
        self.field = field


class QueueFullError(RoostError):
    """The waiting queue is full.

    Args:
      message: Reason, for the client.
      retry_after_s: Estimated number of seconds until the queue has room.
    """

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueTimeoutError(RoostError):
    """A request got no slot before its `start_by`."""


class RequestTimeoutError(RoostError):
    """A request was not done before its `deadline`."""


class RequestFailedError(RoostError):
    """The engine failed to start a request; only that request ends."""


class NumericError(RoostError):
    """The activations of a request are not finite; only that request ends.

    Args:
      message: Reason, for the client.
      from_imported_state: Whether the request was restored from an imported state, which may be the cause.
    """

    def __init__(self, message: str, *, from_imported_state: bool = False) -> None:
        super().__init__(message)
        self.from_imported_state = from_imported_state


class ConstraintError(RoostError):
    """The output constraint of a request failed, or allows no token; only that request ends."""


class ConstraintLostError(ConstraintError):
    """The system ended the process that computes the token masks of a request. The request may be sent again."""


class EngineDeadError(RoostError):
    """The engine was stopped, or lost its state to an exception inside a step; all requests end."""

    __module__ = "roost"


class EngineStoppedError(EngineDeadError):
    """The engine was stopped, or was not running when the request came; no request caused it."""
