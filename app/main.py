"""`faust -A app.main worker`: the ordinary Faust command over one role's app.

The role comes from `FLYWHEEL_ROLE` (default `route`). Importing this module reads the settings; nothing connects.
"""

from __future__ import annotations

import os

from app.factory import create_app
from app.roles import Role
from app.settings import load_settings

app = create_app(load_settings(), Role(os.environ.get("FLYWHEEL_ROLE", Role.ROUTE)))
