"""Requests as typed on a command line."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datum_router.errors import ConfigError
from datum_router_cli.request import make_request


def test_url_becomes_the_head_that_a_gateway_sees() -> None:
    head = make_request(
        "GET",
        "HTTP://Example.COM:8080//a/./b/../c%7e?x=1&y#frag",
        headers=["X-Tenant: blue ", "Accept:"],
        source_ip="FD00::1",
    )
    assert (head.method, head.scheme, head.authority, head.host) == ("GET", "http", "example.com:8080", "example.com")
    assert (head.path, head.query, head.client_ip) == ("/a/c~", "x=1&y", "fd00::1")
    assert list(head.headers) == [(b"x-tenant", b"blue"), (b"accept", b"")]


def test_empty_path_is_the_root() -> None:
    assert make_request("GET", "http://h").path == "/"
    assert make_request("GET", "http://h?q").target == "/?q"


def test_host_header_takes_the_place_of_the_authority() -> None:
    head = make_request("GET", "http://127.0.0.1:8080/", headers=["Host: shop.example.com"])
    assert (head.host, len(head.headers)) == ("shop.example.com", 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("get", "http://h/"), "METHOD: found 'get'; methods are case-sensitive (did you mean GET?)"),
        (("G T", "http://h/"), "METHOD: found 'G T', expected a method such as GET or POST"),
        (("GET", "/path"), "URL: found '/path', expected http://HOST[:PORT]/PATH"),
        (("GET", "htps://h/"), "URL: found scheme 'htps', expected http or https (did you mean https?)"),
        (("GET", "http:///path"), "would be answered with 400: an empty host"),
        (("GET", "http://h:0/"), "would be answered with 400: a port outside 1 to 65535"),
        (("GET", "http://h/a/../../b"), "would be answered with 400"),
        (("GET", "http://h/a%2fb"), "would be answered with 400: an encoded slash in the path"),
        (("GET", "http://h/\n"), "would be answered with 400"),
    ],
)
def test_requests_that_would_be_refused_say_why(arguments: tuple[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_request(*arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize("header", ["no colon", ": empty", "Na me: x", "X: a\nb", "X: \x00"])
def test_bad_headers_are_refused(header: str) -> None:
    with pytest.raises(ConfigError, match="-H: "):
        make_request("GET", "http://h/", headers=[header])


def test_bad_source_address_is_refused() -> None:
    with pytest.raises(ConfigError, match="--source-ip: found 'localhost', expected an IP address"):
        make_request("GET", "http://h/", source_ip="localhost")


@given(method=st.text(max_size=8), url=st.text(max_size=40), header=st.text(max_size=30), source_ip=st.text(max_size=8))
def test_any_text_is_a_request_or_a_config_error(method: str, url: str, header: str, source_ip: str) -> None:
    with contextlib.suppress(ConfigError):
        make_request(method, url, headers=[header], source_ip=source_ip)
