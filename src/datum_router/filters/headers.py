"""RequestHeaderModifier and ResponseHeaderModifier: first remove, then set, then add."""

from __future__ import annotations

import msgspec

from datum_router.filters.base import BadFilter, Filter, edited, fields_of
from datum_router.model.request import FieldList, LocalReply, RequestHead, ResponseHead
from datum_router.model.route import HeaderEdit


class HeaderFilter:
    """Change fields of requests or of responses."""

    __slots__ = ("_fields", "_is_response", "_remove")

    def __init__(self, fields: FieldList, remove: frozenset[bytes], *, is_response: bool) -> None:
        self._fields = fields
        self._remove = remove
        self._is_response = is_response

    @classmethod
    def build(cls, config: HeaderEdit) -> Filter:
        """Return the filter, or one that refuses if a field must not be sent."""
        set_fields, add_fields = fields_of(config.set), fields_of(config.add)
        if set_fields is None or add_fields is None:
            return BadFilter("a header filter of the route produces a field that must not be sent")
        remove = frozenset(name.lower().encode() for name in config.remove) | {name for name, _ in set_fields}
        return cls((*set_fields, *add_fields), remove, is_response=config.is_response)

    def on_request(self, head: RequestHead) -> RequestHead | LocalReply:
        """Return the head with changed fields."""
        if self._is_response:
            return head
        return msgspec.structs.replace(head, headers=edited(head.headers, self._fields, remove=self._remove))

    def on_response(self, head: ResponseHead) -> ResponseHead:
        """Return the head with changed fields."""
        if not self._is_response:
            return head
        return msgspec.structs.replace(head, headers=edited(head.headers, self._fields, remove=self._remove))
