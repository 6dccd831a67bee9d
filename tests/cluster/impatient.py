"""Run the entry point that IMPATIENT names, with a source that soon stops believing watches that say nothing."""

from __future__ import annotations

import os
import runpy

from datum_router_kubernetes import follow

if __name__ == "__main__":
    follow.SILENT_S = 4.0
    runpy.run_module(os.environ["IMPATIENT"], run_name="__main__")
