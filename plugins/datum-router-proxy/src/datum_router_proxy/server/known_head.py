"""The last plain head of an HTTP/1 connection, and how the next one is known by it.

Theory of operation. Clients repeat themselves: most heads are the bytes of the one before on the same connection, or
differ in the target, or in one field that is new each time (`traceparent`, a sequence number). What follows the request
line was found to be a complete and valid end of a head without a body. So the same bytes are again; and so they are
with another value in one field, if it is a value that a field may have and the field is one that we only pass on. Then
only what is new is looked at. Measured (`benchmarks/bench_lane.py`): 7 us a request with the same bytes, 11 with
another target, 12 with another value.

Whatever is not exactly so is for the engine to read.
"""

from __future__ import annotations

from typing import Final

from datum_router_proxy.request import Template
from datum_router_proxy.wire import grammar
from datum_router_proxy.wire.http1 import Http1Limits

MAX_REMEMBERED_HEAD_BYTES: Final = 4096
_SLASH: Final = 0x2F
_CRLF: Final = b"\r\n"


class KnownHead:
    """Remember one head.

    Attributes:
        template: What was made of it; None: no head is remembered.
    """

    __slots__ = ("_block", "_fields", "_limits", "_lines", "_place", "template")

    def __init__(self, limits: Http1Limits) -> None:
        self._limits = limits
        self.forget()

    def forget(self) -> None:
        """Let go of the head: two of three KB that an idle connection would hold."""
        self.template: Template | None = None
        self._block = b""
        self._fields = b""  # of the block, what follows the request line
        self._lines: list[bytes] = []  # of the block; made when first needed
        self._place = 0  # the line that had another value last time

    def remember(self, block: bytes, template: Template) -> None:
        """Keep a complete head without a body, in origin-form and HTTP/1.1, if it is not long."""
        if len(block) <= MAX_REMEMBERED_HEAD_BYTES:
            self.template = template
            self._block = block
            self._fields = block[block.index(_CRLF) + 2 :]
            self._lines = []

    def recognise(self, data: bytes) -> Template | None:
        """Return the template of a head that is known from the one before; None: the engine is to read it."""
        last = self.template
        if last is None or data == self._block:
            return last
        if data.endswith(self._fields):
            new = self._with_target(last, data, len(data) - len(self._fields))
            if new is not None:
                self._lines = []
        else:
            new = self._with_value(last, data)
        if new is not None:
            self.template = new
            self._block = data
        return new

    def _with_target(self, template: Template, data: bytes, size: int) -> Template | None:
        """Return the template for another request line, whose `size` bytes are all that is new."""
        line = grammar.REQUEST_LINE.match(data)
        if line is None or line.end() != size or len(data) > self._limits.max_head_bytes:
            return None
        raw_method, target, minor = line.groups()
        if (
            minor == b"0"
            or raw_method.decode("ascii") != template.method
            or target[0] != _SLASH
            or len(target) > self._limits.max_target_bytes
        ):
            return None
        return template.retarget(target)

    def _with_value(self, template: Template, data: bytes) -> Template | None:
        """Return the template for a head in which one field has another value, and perhaps the target is another."""
        limits = self._limits
        if len(data) > MAX_REMEMBERED_HEAD_BYTES or len(data) > limits.max_head_bytes:
            return None
        lines, known, place = data.split(_CRLF), self._lines or self._block.split(_CRLF), self._place
        if len(lines) != len(known):
            return None
        if not place or lines[1:place] != known[1:place] or lines[place + 1 :] != known[place + 1 :]:
            place = next((at for at in range(1, len(lines)) if lines[at] != known[at]), 0)
            if not place or lines[place + 1 :] != known[place + 1 :]:
                return None
        # All other lines are those of a valid head; so this one, if it is a field line, stands where one stood.
        line, before = lines[place] + _CRLF, grammar.FIELD_LINE.fullmatch(known[place] + _CRLF)
        field = grammar.FIELD_LINE.fullmatch(line)
        if field is None or before is None or len(line) > limits.max_field_bytes:
            return None
        name, value = field.groups()
        if name != before[1]:
            return None
        new = template.with_value(name.lower(), before[2], value)
        if new is not None and lines[0] != known[0]:
            new = self._with_target(new, data, len(lines[0]) + 2)
        if new is not None:
            self._fields = data[len(lines[0]) + 2 :]
            self._lines = lines
            self._place = place
        return new
