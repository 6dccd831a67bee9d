"""What a worker has in memory is what it needs: modules for manifests, probes and YAML are the supervisor's."""

from __future__ import annotations

import json
import subprocess
import sys

from datum_router.plugins.manager import SERVING_HOOKS, load_plugins

WORKER = """
import json, sys
from datum_router.compiler.linker import Linker
from datum_router.routing.regex import load_engine
from datum_router.model.snapshot import Holder, SnapshotData
from datum_router.plugins.manager import SERVING_HOOKS, candidate_of, load_plugins
from datum_router_runtime import worker
from datum_router_runtime.reporter import Reporter

plugins = load_plugins([candidate_of(*known) for known in json.loads(sys.argv[1])], hooks=SERVING_HOOKS)
snapshot = Linker(plugins, regex=load_engine()).link(SnapshotData())
plane = plugins.data_planes["proxy"].create(Holder(snapshot), Reporter(has_access_log=False), {})
print(json.dumps(sorted(sys.modules)))
"""

# What each would cost a worker, in MB: hpack 2.5 (0.6 with bytecode), httpcore with h11 and h2 3, yaml 1, re2 2.5,
# the types of manifests 1.
NOT_IN_A_WORKER = {
    "asyncio",
    "click",
    "datum_router.compiler.compiler",
    "datum_router.manifests.vpcroute",
    "datum_router.registry.store",
    "datum_router_files.scan",
    "datum_router_proxy.prober",
    "datum_router_runtime.workers",
    "email.utils",
    "h11",
    "h2",
    "hpack",
    "httpcore",
    "importlib.metadata",
    "re2",
    "rich",
    "yaml",
}


def test_a_worker_imports_nothing_that_only_the_supervisor_needs() -> None:
    known = [
        (plugin.entry_point, plugin.distribution, plugin.target)
        for plugin in load_plugins().plugins
        if SERVING_HOOKS.intersection(plugin.hooks)
    ]
    run = subprocess.run(
        [sys.executable, "-c", WORKER, json.dumps(known)], capture_output=True, text=True, check=True, timeout=60
    )
    modules = set(json.loads(run.stdout))
    assert "datum_router_proxy.pipeline" in modules
    assert not modules & NOT_IN_A_WORKER
