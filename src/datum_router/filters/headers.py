"""Set, add and remove header fields (Gateway API HTTPHeaderFilter). Order: set, then add, then remove."""

from __future__ import annotations

import msgspec

from datum_router.filters.grammar import field_problem, name_problem
from datum_router.model.request import FieldList, Headers, LocalReply, RequestHead, ResponseHead
from datum_router.model.route import HeaderEdit


def _octets(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def edit_problem(config: HeaderEdit) -> str:
    """Return why an edit may not be made, naming the field; empty if it may."""
    for name, value in (*config.set, *config.add):
        problem = field_problem(_octets(name), _octets(value))
        if problem:
            return f"{name!r}: {problem}"
    for name in config.remove:
        problem = name_problem(_octets(name))
        if problem:
            return f"{name!r}: {problem}"
    return ""


class _Edit:
    """A compiled edit: which names go, and which fields come after the rest."""

    __slots__ = ("_dropped", "_tail")

    def __init__(self, config: HeaderEdit) -> None:
        removed = frozenset(map(_octets, config.remove))
        self._dropped = removed | {_octets(name) for name, _ in config.set}
        # Of several `set` entries with one name the last one counts, as if each replaced what was there.
        tail = list({_octets(name): _octets(value) for name, value in config.set}.items())
        tail += [(_octets(name), _octets(value)) for name, value in config.add]
        self._tail: FieldList = tuple(field for field in tail if field[0] not in removed)

    def apply(self, headers: Headers) -> Headers:
        dropped = self._dropped
        if not dropped:
            return Headers(headers.fields + self._tail) if self._tail else headers
        return Headers((*(field for field in headers.fields if field[0] not in dropped), *self._tail))


class RequestHeaderEdit:
    """Edit the fields that go upstream."""

    __slots__ = ("_edit",)

    def __init__(self, config: HeaderEdit) -> None:
        self._edit = _Edit(config)

    def on_request(self, head: RequestHead) -> RequestHead | LocalReply:
        """Return the head with edited fields."""
        return msgspec.structs.replace(head, headers=self._edit.apply(head.headers))

    def on_response(self, head: ResponseHead) -> ResponseHead:
        """Return the head unchanged."""
        return head


class ResponseHeaderEdit:
    """Edit the fields that go back to the client."""

    __slots__ = ("_edit",)

    def __init__(self, config: HeaderEdit) -> None:
        self._edit = _Edit(config)

    def on_request(self, head: RequestHead) -> RequestHead | LocalReply:
        """Return the head unchanged."""
        return head

    def on_response(self, head: ResponseHead) -> ResponseHead:
        """Return the head with edited fields."""
        return ResponseHead(status=head.status, headers=self._edit.apply(head.headers))
