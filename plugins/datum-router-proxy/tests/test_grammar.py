"""The grammar of header bytes, by rule."""

from __future__ import annotations

import ast
import inspect
import re

import pytest

from datum_router_proxy.wire import grammar


@pytest.mark.parametrize("name", [b"a", b"x-foo", b"!#$%&'*+-.^_`|~09az"])
def test_lower_case_tokens_are_h2_names(name: bytes) -> None:
    assert grammar.is_valid_field_name_h2(name)


@pytest.mark.parametrize(
    "name", [b"", b"X", b"a b", b"a:", b":path", b"a\n", b"a\x00", b"\xe9", b'a"', b"a(", b"a/b", b"a@b"]
)
def test_other_bytes_are_no_h2_names(name: bytes) -> None:
    assert not grammar.is_valid_field_name_h2(name)


@pytest.mark.parametrize("value", [b"", b"a", b"a b", b"a\tb", b"\xff", b"!~", b"a  \t b"])
def test_field_values(value: bytes) -> None:
    assert grammar.is_valid_field_value(value)


@pytest.mark.parametrize(
    "value", [b" ", b" a", b"a ", b"\ta", b"a\t", b"a\n", b"a\r\n", b"a\x00b", b"\x7f", b"\x0b", b"\x1f"]
)
def test_blanks_at_the_ends_and_controls_are_no_field_values(value: bytes) -> None:
    assert not grammar.is_valid_field_value(value)


@pytest.mark.parametrize(
    "address",
    [
        b"::",
        b"::1",
        b"1::",
        b"2001:db8::1",
        b"1:2:3:4:5:6:7:8",
        b"1:2:3:4:5:6:1.2.3.4",
        b"::ffff:10.0.0.1",
        b"1::3:4:5:6:7:8",
        b"fe80::1:2",
    ],
)
def test_ipv6_literals(address: bytes) -> None:
    assert grammar.IPV6.fullmatch(address)
    assert grammar.is_valid_authority(b"[" + address + b"]:443")


@pytest.mark.parametrize(
    "address",
    [
        b":",
        b":::",
        b"1:2:3:4:5:6:7",
        b"1:2:3:4:5:6:7:8:9",
        b"1::2::3",
        b"12345::",
        b"::1.2.3.256",
        b"::1%1",
        b"g::",
        b"1:",
    ],
)
def test_malformed_ipv6_literals(address: bytes) -> None:
    assert not grammar.IPV6.fullmatch(address)


@pytest.mark.parametrize("port", [1, 9, 80, 8080, 59999, 60000, 64999, 65500, 65534, 65535])
def test_ports_in_range(port: int) -> None:
    assert grammar.is_valid_authority(b"a:%d" % port)


@pytest.mark.parametrize(
    "port", [b"", b"0", b"00", b"080", b"65536", b"70000", b"99999", b"100000", b"8o", b"+1", b"1 "]
)
def test_ports_out_of_range(port: bytes) -> None:
    assert not grammar.is_valid_authority(b"a:" + port)


@pytest.mark.parametrize(("value", "length"), [(b"0", 0), (b"007", 7), (b"9" * 18, 10**18 - 1)])
def test_content_lengths(value: bytes, length: int) -> None:
    assert grammar.parse_content_length(value) == length


@pytest.mark.parametrize("value", [b"", b"+1", b"-1", b"1_0", b" 1", b"1 ", b"1\n", b"0x1", b"\xb2", b"1" * 19, b"1,1"])
def test_malformed_content_lengths(value: bytes) -> None:
    assert grammar.parse_content_length(value) is None


def test_methods_and_paths() -> None:
    assert grammar.is_valid_method(b"M-SEARCH")
    assert not any(map(grammar.is_valid_method, (b"", b"get", b"G T", b"GET\n", b"A" * 33)))
    assert grammar.is_valid_origin_form(b"/a?b=c%20d|")
    assert not any(map(grammar.is_valid_origin_form, (b"", b"a", b"*", b"/ ", b"/#", b"/\n", b"/\xe9", b"/a\x7f")))


def test_the_last_newline_never_slips_through() -> None:
    patterns = [found for found in vars(grammar).values() if isinstance(found, re.Pattern)]
    assert len(patterns) >= 20
    ends_in_line_feed = {
        grammar.REQUEST_LINE,
        grammar.STATUS_LINE,
        grammar.FIELD_LINE,
        grammar.CHUNK_HEADER,
        grammar.CHUNKED_FIELD_LINE,
    }
    for pattern in patterns:
        assert b"$" not in pattern.pattern.replace(rb"!#$%&", b""), pattern
        if pattern not in ends_in_line_feed:
            for sample in (b"a\n", b"1\n", b"/\n", b"GET\n", b"a: b\n", b"HTTP/1.1\n", b"http\n", b"::\n", b"1S\n"):
                assert pattern.fullmatch(sample) is None


def test_no_pattern_has_an_unbounded_quantifier_that_gives_back_but_the_field_value() -> None:
    """Linear time by structure: `*` and `+` are possessive everywhere except once, where the class is fixed."""
    plain = re.compile(rb"(?<!\\)(?<![*+?}])[*+](?![+?])")
    found = {}
    for name, pattern in vars(grammar).items():
        if isinstance(pattern, re.Pattern):
            without_classes = re.sub(rb"\[(?:\\.|[^\]\\])*\]", b"C", pattern.pattern)
            count = len(plain.findall(without_classes))
            if count:
                found[name] = count
    assert found == {"FIELD_VALUE": 1}


def test_every_pattern_has_its_rule_beside_it() -> None:
    body = ast.parse(inspect.getsource(grammar)).body
    for index, node in enumerate(body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and "re.compile" in ast.unparse(node):
            following = body[index + 1]
            assert isinstance(following, ast.Expr), node.target.id
            assert isinstance(following.value, ast.Constant), node.target.id


@pytest.mark.parametrize(
    "line",
    [b"a" * 60_000, b"a:" + b" " * 60_000 + b"\x00", b"a:" + b" b" * 30_000 + b"\x00", b"a:" + b"b \t" * 20_000 + b" "],
)
def test_hostile_lines_are_decided(line: bytes) -> None:
    assert not grammar.FIELD_LINE.findall(line + b"\r\n")
    assert not grammar.is_valid_field_value(line + b" ")
