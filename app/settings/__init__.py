"""Settings: one class a section, read from the environment, `flywheel.toml` and secret files; refused when wrong."""

from app.settings.load import SettingsError, load_settings
from app.settings.sections import Settings

__all__ = ["Settings", "SettingsError", "load_settings"]
