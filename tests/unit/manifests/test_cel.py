"""Pieces of expressions; what whole rules do, an API server tells (tests/cluster/test_corpus.py)."""

from __future__ import annotations

import pytest

from datum_router.manifests.cel import excludes, filled, given, needs, text, texts
from datum_router.reasons import Reason


def test_a_text_is_a_raw_literal_in_the_quotes_that_it_lacks() -> None:
    assert text(r"^\d$") == r"r'^\d$'"
    assert text("it's") == 'r"it\'s"'
    assert text('a"b') == "r'a\"b'"
    assert texts({"b", "a"}) == "[r'a', r'b']"
    with pytest.raises(ValueError, match="both kinds of quotes"):
        text("'\"")


def test_a_field_below_others_is_there_if_they_are() -> None:
    assert given("a.b.c") == "has(self.a) && has(self.a.b) && has(self.a.b.c)"
    assert filled("a.b") == "has(self.a) && has(self.a.b) && self.a.b.size() > 0"


def test_fields_that_need_or_exclude_each_other_name_the_field_and_the_reason() -> None:
    wanted = needs("b", "has(self.a)", "a needs b")
    assert (wanted.rule, wanted.field, wanted.reason) == ("!(has(self.a)) || has(self.b)", "b", Reason.MISSING_FIELD)
    other = excludes("b", "has(self.a)", "a excludes b", is_list=True)
    assert other.rule == "!(has(self.a)) || !(has(self.b) && self.b.size() > 0)"
    assert other.reason is Reason.MUTUALLY_EXCLUSIVE
