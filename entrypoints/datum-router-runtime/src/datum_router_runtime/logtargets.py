"""Which names of loggers in `DATUM_ROUTER_LOG` can be meant: a misspelt one would silently choose nothing.

A logger is named after its module, and modules of plugins are imported long after logging is set up. So a name is
known if a module of that name could be imported; nothing is imported to find out.
"""

from __future__ import annotations

import importlib.util
import logging
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from datum_router.compiler.diagnostics import nearest
from datum_router_runtime.logsetup import ACCESS_LOGGER, ALIAS, is_own_logger, parse_filter

log = logging.getLogger(__name__)


def warn_of_unknown_targets(environ: Mapping[str, str]) -> None:
    """Log one warning for each logger in `DATUM_ROUTER_LOG` that no module is called; call it after `setup_logging`.

    For the process that a user starts: its workers have the same filter. It is a warning, no error: a plugin may call
    its loggers as it likes.

    Raises:
        ConfigError: Filters that cannot be read.
    """
    for target in parse_filter(environ.get("DATUM_ROUTER_LOG", "")).targets:
        if not _is_known(target):
            near = nearest(target, _names_like(target))
            log.warning(
                "DATUM_ROUTER_LOG names a logger that no module is called",
                extra={"found": target, "expected": near or f"{ALIAS}, or the name of a module"},
            )


def _is_known(target: str) -> bool:
    if target in (ALIAS, ACCESS_LOGGER):
        return True
    head, _, rest = target.partition(".")
    places = _places_of(head)
    if places is None:
        return False
    for part in rest.split(".") if rest else ():
        if part not in _modules_in(places):
            return False
        places = [str(Path(place) / part) for place in places]
    return True


def _places_of(package: str) -> Sequence[str] | None:
    """Return the directories of a package, empty for a plain module; None if there is no such thing."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # a module without a spec, such as __main__
        return None
    return None if spec is None else list(spec.submodule_search_locations or ())


def _modules_in(places: Iterable[str] | None) -> set[str]:
    return {module.name for module in pkgutil.iter_modules(places)}


def _names_like(target: str) -> list[str]:
    """Return names that may have been meant: ours, and those beside the first part that is unknown."""
    own = [name for name in _modules_in(None) if is_own_logger(name)]
    names = [ALIAS, ACCESS_LOGGER, *own]
    head, _, rest = target.partition(".")
    places, prefix = _places_of(head), head
    for part in rest.split(".") if places else ():
        inside = _modules_in(places)
        names += [f"{prefix}.{module}" for module in inside]
        if part not in inside:
            break
        prefix = f"{prefix}.{part}"
        places = [str(Path(place) / part) for place in places or ()]
    return sorted(names)
