from datum_router.compiler.diagnostics import Diagnostic, Origin, Severity, did_you_mean, has_errors, nearest
from datum_router.reasons import Reason

ORIGIN = Origin(source="files", file="a.yaml", line=3, lines={"spec": 7, "spec.match": 8, "spec.destinations[0]": 12})


def test_a_path_is_located_at_its_line_or_its_nearest_known_ancestor() -> None:
    assert ORIGIN.locate("spec.match") == 8
    assert ORIGIN.locate("spec.match.pathPrefx") == 8
    assert ORIGIN.locate("spec.destinations[0].weight") == 12
    assert ORIGIN.locate("spec.destinations[4].weight") == 7
    assert ORIGIN.locate("metadata.name") == 3
    assert ORIGIN.locate("") == 3


def test_a_diagnostic_reads_as_one_line_with_place_and_hint() -> None:
    diagnostic = Diagnostic(
        severity=Severity.ERROR,
        object="vpcroute default/api-routes",
        path="spec.match.pathPrefx",
        reason=Reason.UNKNOWN_FIELD,
        message="unknown field",
        hint="did you mean pathPrefix?",
        file="a.yaml",
        line=9,
    )
    assert diagnostic.render() == (
        "a.yaml:9: error: vpcroute default/api-routes: spec.match.pathPrefx: unknown field [UnknownField] "
        "(did you mean pathPrefix?)"
    )
    assert has_errors([diagnostic])


def test_terms_of_others_are_nearer_than_what_looks_alike() -> None:
    terms = {"HTTP2": "H2C", "H3": "HTTP3"}
    assert nearest("http_2", ["HTTP", "HTTPS", "H2C"], terms) == "H2C"
    assert nearest("H3", ["HTTP"], terms) == ""
    assert nearest("https", ["HTTP", "HTTPS"], {"https": "HTTP"}) == "HTTPS"


def test_near_misses_are_suggested_and_far_ones_are_not() -> None:
    assert did_you_mean("pathPrefx", ["pathPrefix", "exactPath"]) == "did you mean pathPrefix?"
    assert did_you_mean("ROUND-ROBIN", ["round-robin"]) == "did you mean round-robin?"
    assert did_you_mean("least_connection", ["round-robin", "least-connections"]) == "did you mean least-connections?"
    assert did_you_mean("LEAST_CONECTIONS", ["round-robin", "least-connections"]) == "did you mean least-connections?"
    assert did_you_mean("zzz", ["pathPrefix"]) == ""
