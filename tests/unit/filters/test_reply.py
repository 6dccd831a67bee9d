"""Bodies of our own answers: which template, what stands in it, and that no value breaks out of it."""

from __future__ import annotations

import html
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datum_router.filters.reply import ESCAPES, PLACEHOLDERS, dress, template_problem
from datum_router.model.filters import ReplyTemplate
from datum_router.model.request import LocalReply
from datum_router.reasons import Reason

GONE = LocalReply(status=503, reason=Reason.NO_HEALTHY_ENDPOINT, detail='no "endpoint" <left>')
JSON = ReplyTemplate(
    statuses=(503,),
    content_type="application/json",
    body='{"status": %STATUS%, "text": "%STATUS_TEXT%", "reason": "%REASON%", "said": "%DETAIL%",'
    ' "id": "%REQUEST_ID%"}',
)
HTML = ReplyTemplate(content_type="text/html", body='<p style="width:100%">%STATUS% %DETAIL%</p>')


def test_values_are_escaped_as_json_has_it() -> None:
    made = dress((JSON, HTML), GONE, "abc")
    assert made.content_type == b"application/json"
    assert json.loads(made.body or b"") == {
        "status": 503, "text": "Service Unavailable", "reason": "no_healthy_endpoint",
        "said": 'no "endpoint" <left>', "id": "abc",
    }  # fmt: skip


def test_the_first_template_that_fits_is_taken_and_values_are_escaped_as_html_has_it() -> None:
    made = dress((JSON, HTML), LocalReply(status=404, reason="x", detail="<a&b>"), "abc")
    assert made.content_type == b"text/html; charset=utf-8"
    assert made.body == b'<p style="width:100%">404 &lt;a&amp;b&gt;</p>'


@pytest.mark.parametrize(
    "reply",
    [
        LocalReply(status=302, reason="x"),
        LocalReply(status=403, reason="x", body=b"own"),
        LocalReply(status=404, reason="x"),
    ],
)
def test_what_no_template_is_for_stays_as_it_is(reply: LocalReply) -> None:
    templates = (JSON,) if reply.status == 404 else (JSON, HTML)
    assert dress(templates, reply, "abc") is reply


@pytest.mark.parametrize(
    ("body", "content_type", "said"),
    [
        ("%STATUZ%", "text/plain", "the placeholder %STATUZ%, expected %STATUS%"),
        ("%PATH% 5%", "text/plain", "the placeholder %PATH%, expected "),
        ("{%STATUS%}", "application/json", "no json: "),
        ('{"a": %REASON%x}', "application/problem+json", "no json: "),
        ('{"a": %DETAIL%}', "application/json", "no json: "),
        ('{"a": %REQUEST_ID%}', "application/json", "no json: "),
    ],
)
def test_templates_that_cannot_be_used(body: str, content_type: str, said: str) -> None:
    assert template_problem(body, content_type).startswith(said)


@given(st.text(max_size=50), st.sampled_from(sorted(ESCAPES)))
def test_no_value_breaks_out_of_its_template(value: str, content_type: str) -> None:
    body = '"%DETAIL%"'
    assert template_problem(body, content_type) == ""
    made = dress((ReplyTemplate(content_type=content_type, body=body),), LocalReply(
        status=500, reason="x", detail=value
    ), "")  # fmt: skip
    text = (made.body or b"").decode()
    sent = value.encode("utf-8", "replace").decode()
    if content_type.endswith("json"):
        assert json.loads(text) == sent
    elif content_type == "text/html":
        assert not set("<>") & set(text)
        assert html.unescape(text[1:-1]) == html.unescape(html.escape(sent))
    else:
        assert text == f'"{sent}"'


def test_every_placeholder_has_a_value() -> None:
    body = " ".join(f"%{name}%" for name in PLACEHOLDERS)
    made = dress((ReplyTemplate(body=body),), GONE, "abc")
    assert made.body == b'503 Service Unavailable no_healthy_endpoint no "endpoint" <left> abc'
