"""Settings of `roost serve`: their declarations, the sources of their values, and their names in errors.

`settings.py` declares each setting of the core once, and a feature's `settings.py` the feature's settings. Flags,
environment variables, keys of the config file, `--help` and the settings reference follow from that declaration.
"""

from .fields import Group, mesh_sizes
from .foreign_names import foreign_flag_hint, foreign_flags, foreign_name_hint, is_neutral
from .loading import is_json_wanted, load_settings
from .names import flag_name
from .reference import SettingReference, setting_reference, settings_reference
from .settings import MODEL_CHOICES, Settings, all_settings
from .sources import SettingsError, chosen_platforms

__all__ = [
    "MODEL_CHOICES",
    "Group",
    "SettingReference",
    "Settings",
    "SettingsError",
    "all_settings",
    "chosen_platforms",
    "flag_name",
    "foreign_flag_hint",
    "foreign_flags",
    "foreign_name_hint",
    "is_json_wanted",
    "is_neutral",
    "load_settings",
    "mesh_sizes",
    "setting_reference",
    "settings_reference",
]
