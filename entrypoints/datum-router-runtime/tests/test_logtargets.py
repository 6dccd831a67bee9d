"""Names of loggers that no module has are told, with the nearest one that there is."""

import pytest

from datum_router_runtime.logtargets import warn_of_unknown_targets


def told(text: str, caplog: pytest.LogCaptureFixture) -> list[tuple[object, object]]:
    warn_of_unknown_targets({"DATUM_ROUTER_LOG": text})
    return [(record.__dict__["found"], record.__dict__["expected"]) for record in caplog.records]


@pytest.mark.parametrize(
    ("text", "found", "expected"),
    [
        ("ruoter=debug", "ruoter", "router"),
        ("datum_router_proxi=debug", "datum_router_proxi", "datum_router_proxy"),
        ("warn,datum-router-proxi", "datum_router_proxi", "datum_router_proxy"),
        ("datum_router_proxy.wyre=debug", "datum_router_proxy.wyre", "datum_router_proxy.wire"),
        (
            "datum_router_proxy.wire.http2.gard=debug",
            "datum_router_proxy.wire.http2.gard",
            "datum_router_proxy.wire.http2.guard",
        ),
        ("datum_router.acess=off", "datum_router.acess", "datum_router.access"),
        ("zzz=debug", "zzz", "router, or the name of a module"),
    ],
)
def test_a_misspelt_logger_is_told_with_what_would_be_right(
    text: str, found: str, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert told(text, caplog) == [(found, expected)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "debug",
        "router=debug,warn",
        "datum_router_proxy=trace",
        "datum_router_proxy.wire.http1.connection=trace",
        "datum_router.access=off",
        "trio=debug,asyncio=info,json.decoder=info",
    ],
)
def test_names_that_a_module_has_are_right(text: str, caplog: pytest.LogCaptureFixture) -> None:
    assert told(text, caplog) == []
