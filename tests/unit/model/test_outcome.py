import pytest

from datum_router.model.endpoint import EndpointKey
from datum_router.model.outcome import Outcome, OutcomeClass
from datum_router.model.service import ServiceKey
from datum_router.reasons import Reason


@pytest.mark.parametrize(
    ("status", "reason", "expected"),
    [
        (200, Reason.ROUTED, OutcomeClass.SUCCESS),
        (404, Reason.ROUTED, OutcomeClass.SUCCESS),
        (500, Reason.ROUTED, OutcomeClass.SERVER_ERROR),
        (502, Reason.ROUTED, OutcomeClass.GATEWAY_ERROR),
        (503, Reason.ROUTED, OutcomeClass.GATEWAY_ERROR),
        (0, Reason.CONNECT_FAILED, OutcomeClass.GATEWAY_ERROR),
        (0, Reason.UPSTREAM_RESET, OutcomeClass.GATEWAY_ERROR),
        (200, Reason.UPSTREAM_RESET, OutcomeClass.GATEWAY_ERROR),
        (0, Reason.BAD_LENGTH, OutcomeClass.GATEWAY_ERROR),
        (200, Reason.BAD_CHUNK, OutcomeClass.GATEWAY_ERROR),
        (200, Reason.BAD_FRAME, OutcomeClass.GATEWAY_ERROR),
        (200, Reason.DOWNSTREAM_RESET, OutcomeClass.SUCCESS),
        (0, Reason.DOWNSTREAM_RESET, None),
        (0, Reason.REQUEST_TIMEOUT, None),
        (0, Reason.BODY_TIMEOUT, None),
        (0, Reason.POOL_OVERFLOW, None),
        (0, Reason.LOCAL_RESOURCES, None),
        (0, Reason.CIRCUIT_OPEN, None),
        (0, Reason.UPSTREAM_REFUSED_STREAM, None),
    ],
)
def test_only_what_an_endpoint_caused_counts(status: int, reason: Reason, expected: OutcomeClass | None) -> None:
    outcome = Outcome(service=ServiceKey("n/s"), endpoint=EndpointKey("10.0.0.1:80"), status=status, reason=reason)
    assert outcome.outcome_class is expected
