"""Options of a report, which its processes pass to each other as JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ...settings import Settings, load_settings

DEMO = "demo"
"""Model of the checks of results."""


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """Options of a report.

    Attributes:
      settings: Settings of the model and the engine, by the names of `roost serve`'s flags.
      folder: Folder of the report, for files of its parts.
      is_quick: Whether the report is short.
      without_kernels: Kernels that are replaced by XLA.
    """

    settings: Mapping[str, Any]
    folder: str
    is_quick: bool = False
    without_kernels: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "ReportOptions":
        return cls(fields["settings"], fields["folder"], fields["is_quick"], tuple(fields["without_kernels"]))

    def as_json(self) -> Mapping[str, Any]:
        """Returns the options for another process."""
        return asdict(self)

    def without(self, kernels: tuple[str, ...]) -> "ReportOptions":
        """Returns the options with more kernels replaced by XLA."""
        return replace(self, without_kernels=(*self.without_kernels, *kernels))

    def load(self, **changes: Any) -> Settings:
        """Returns all settings.

        Args:
          changes: Settings that override the options' settings.

        Raises:
          SettingsError: A setting is wrong.
        """
        return load_settings({**self.settings, "without_kernels": self.without_kernels, **changes})
