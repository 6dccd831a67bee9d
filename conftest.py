"""Hypothesis runs the same examples every time, without deadlines: a test's verdict must not depend on luck or load.

`HYPOTHESIS_PROFILE=explore pytest ...` looks for new ones.
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", derandomize=False, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))
