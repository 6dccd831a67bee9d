"""What all kinds share: metadata, conditions, references, object keys and durations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Final

from msgspec import Meta, Struct

from datum_router.manifests.terms import suggest_duration

GROUP: Final = "router.datum.net"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
DEFAULT_NAMESPACE: Final = "default"

MAX_NAME_CHARS: Final = 253
MAX_NAMESPACE_CHARS: Final = 63

# --- limits ----------------------------------------------------------------------------------------------------
# Whatever users write is bounded: the API server prices each CEL rule by the longest text and list that it may be
# run on, and refuses the CRD if that is too much.

MAX_URL_PATH_CHARS: Final = 1024
"""Longest path that is matched or written (characters); that of the Gateway API."""
MAX_HOST_CHARS: Final = 253
"""Longest host name (RFC 1035 section 2.3.4)."""
MAX_ADDRESS_CHARS: Final = 64
"""Longest text of an address or network; the longest that means something has 49 characters."""
MAX_HEADER_NAME_CHARS: Final = 256
MAX_HEADER_VALUE_CHARS: Final = 4096
MAX_DURATION_CHARS: Final = 28
"""Four parts of five digits and a unit."""
MAX_LABEL_KEY_CHARS: Final = MAX_NAME_CHARS + 1 + 63
MAX_LABEL_VALUE_CHARS: Final = 63
MAX_NOTE_CHARS: Final = 4096
"""Longest value of an annotation in a spec."""
MAX_MAP_ENTRIES: Final = 64
"""Labels, topology and notes of one object."""
MAX_MATCH_CONDITIONS: Final = 16
"""Conditions of one kind (headers, header matches, query parameters, methods) in one match."""
MAX_SELECTOR_CONDITIONS: Final = 16
MAX_SELECTOR_VALUES: Final = 64
MAX_THRESHOLD: Final = 1000
"""Most probes, failures or successes in a row that anything can wait for."""
MAX_COUNT: Final = 1_000_000
"""Most connections or requests that a limit can name."""
MAX_CONDITIONS: Final = 16
"""Conditions of one status."""
MAX_CONDITION_MESSAGE_CHARS: Final = 32768
MAX_STATUS_ENDPOINTS: Final = 1000
"""Endpoints that a status lists; it says how many there are in all."""
MAX_STATUS_TEXT_CHARS: Final = 1024
"""Longest text of a field of a status, but a condition's message."""

# --- words that a type can say ---------------------------------------------------------------------------------

LABEL_PATTERN: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
"""DNS label (RFC 1123 section 2.1): namespaces."""
SUBDOMAIN_PATTERN: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
"""DNS subdomain (RFC 1123 section 2.1): names of objects."""
LABEL_KEY_PATTERN: Final = (
    r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?"
    r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
)
"""Qualified name of Kubernetes: keys of labels and annotations, with a DNS subdomain and / in front or not."""
LABEL_VALUE_PATTERN: Final = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"
DURATION_PATTERN: Final = r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"
"""Gateway API duration (GEP-2257)."""
TOKEN_PATTERN: Final = r"^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$"
"""token = 1*tchar (RFC 9110 section 5.6.2)."""
FIELD_TEXT_PATTERN: Final = r"^[^\x00-\x08\x0a-\x1f\x7f]*$"
"""A part of a field value: no control character but the tab (RFC 9110 section 5.5)."""
LINES_PATTERN: Final = r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*$"
"""Text of one line or several: no control character but the tab and line breaks."""
FIELD_VALUE_PATTERN: Final = r"^([^\x00-\x20\x7f]([^\x00-\x08\x0a-\x1f\x7f]*[^\x00-\x20\x7f])?)?$"
"""A whole field value: neither begins nor ends with a blank (RFC 9110 section 5.5)."""

_SUBDOMAIN = re.compile(SUBDOMAIN_PATTERN.removesuffix("$") + r"\Z")
_LABEL = re.compile(LABEL_PATTERN.removesuffix("$") + r"\Z")


def is_name(text: str) -> bool:
    """Tell whether an object may have this name: as `Name`, but no line break may follow."""
    return len(text) <= MAX_NAME_CHARS and _SUBDOMAIN.match(text) is not None


def is_namespace(text: str) -> bool:
    """Tell whether a namespace may have this name: as `NamespaceName`, but no line break may follow."""
    return len(text) <= MAX_NAMESPACE_CHARS and _LABEL.match(text) is not None


Name = Annotated[
    str,
    Meta(
        pattern=SUBDOMAIN_PATTERN,
        min_length=1,
        max_length=MAX_NAME_CHARS,
        extra={"expected": "a DNS-1123 name: lower-case letters, digits, - and ."},
    ),
]
NamespaceName = Annotated[
    str,
    Meta(
        pattern=LABEL_PATTERN,
        min_length=1,
        max_length=MAX_NAMESPACE_CHARS,
        extra={"expected": "a DNS-1123 label: lower-case letters, digits and -"},
    ),
]
Duration = Annotated[
    str,
    Meta(
        pattern=DURATION_PATTERN,
        max_length=MAX_DURATION_CHARS,
        extra={"expected": "a duration such as 10s, 1m30s or 250ms", "suggest": suggest_duration},
    ),
]
"""Durations are text on the wire; `parse_duration` gives seconds."""
Port = Annotated[int, Meta(ge=1, le=65535)]
Percent = Annotated[int, Meta(ge=0, le=100)]
HeaderName = Annotated[
    str,
    Meta(
        pattern=TOKEN_PATTERN,
        min_length=1,
        max_length=MAX_HEADER_NAME_CHARS,
        extra={"expected": "a header name (RFC 9110 token)"},
    ),
]
HeaderText = Annotated[
    str,
    Meta(
        pattern=FIELD_TEXT_PATTERN,
        max_length=MAX_HEADER_VALUE_CHARS,
        extra={"expected": "text without control characters"},
    ),
]
HeaderValue = Annotated[
    str,
    Meta(
        pattern=FIELD_VALUE_PATTERN,
        max_length=MAX_HEADER_VALUE_CHARS,
        extra={"expected": "a header value: no control characters, no blank at either end"},
    ),
]
LINES_EXTRA: Final = {"expected": "text whose only control characters are tabs and line breaks", "is_lines": True}
"""What `Meta` of a text with `LINES_PATTERN` says beside it."""
# What else these texts must be is in `rules`, and in `cel` for the API server.
PathText = Annotated[str, Meta(min_length=1, max_length=MAX_URL_PATH_CHARS)]
HostText = Annotated[str, Meta(min_length=1, max_length=MAX_HOST_CHARS)]
AddressText = Annotated[str, Meta(min_length=1, max_length=MAX_ADDRESS_CHARS)]
NetworkText = Annotated[str, Meta(min_length=1, max_length=MAX_ADDRESS_CHARS)]
LabelKey = Annotated[
    str,
    Meta(
        pattern=LABEL_KEY_PATTERN,
        min_length=1,
        max_length=MAX_LABEL_KEY_CHARS,
        extra={"expected": "a label key such as app or example.com/tier"},
    ),
]
LabelValue = Annotated[
    str,
    Meta(
        pattern=LABEL_VALUE_PATTERN,
        max_length=MAX_LABEL_VALUE_CHARS,
        extra={"expected": "a label value: letters, digits, -, _ and ., the first and last a letter or digit"},
    ),
]
Labels = Annotated[Mapping[LabelKey, LabelValue], Meta(max_length=MAX_MAP_ENTRIES)]
Notes = Annotated[Mapping[LabelKey, Annotated[str, Meta(max_length=MAX_NOTE_CHARS)]], Meta(max_length=MAX_MAP_ENTRIES)]
StatusText = Annotated[str, Meta(max_length=MAX_STATUS_TEXT_CHARS)]
Count = Annotated[int, Meta(ge=0)]

_UNIT_SECONDS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION = re.compile(r"(?:[0-9]{1,5}(?:h|ms|m|s)){1,4}")
_DURATION_PART = re.compile(r"([0-9]{1,5})(h|ms|m|s)")


def parse_duration(text: str) -> float:
    """Return a Gateway API duration (GEP-2257: `10s`, `1m30s`, `250ms`) as seconds.

    Raises:
        ValueError: `text` is no such duration; decoded manifests never hold one.
    """
    if _DURATION.fullmatch(text) is None:
        raise ValueError(f"found {text!r}, expected a duration such as 10s, 1m30s or 250ms")
    return sum(int(amount) * _UNIT_SECONDS[unit] for amount, unit in _DURATION_PART.findall(text))


# --- identity --------------------------------------------------------------------------------------------------


class GroupVersionKind(Struct, frozen=True, kw_only=True, order=True, gc=False):
    """What an object is: API group (empty for core/v1), version and kind."""

    group: str
    version: str
    kind: str

    @property
    def api_version(self) -> str:
        """Return `group/version`, or the version alone for the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version


class ObjectKey(Struct, frozen=True, kw_only=True, order=True, gc=False):
    """Which object: kind, namespace, name, in this order of comparison. Cluster-scoped: namespace is empty."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        where = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return f"{self.kind.lower()} {where}"


class OwnerReference(Struct, frozen=True, kw_only=True, rename="camel", gc=False):
    """Who an object belongs to."""

    api_version: str = ""
    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool | None = None
    block_owner_deletion: bool | None = None


class ObjectMeta(Struct, frozen=True, kw_only=True, rename="camel", gc=False):
    """The metadata of an object. Fields that only the API server cares about (`managedFields`) are passed over."""

    name: str
    namespace: str = DEFAULT_NAMESPACE
    labels: Mapping[str, str] | None = None
    annotations: Mapping[str, str] | None = None
    generation: int = 0
    resource_version: str = ""
    uid: str = ""
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    owner_references: tuple[OwnerReference, ...] = ()
    finalizers: tuple[str, ...] = ()


# --- parts of specs and statuses -------------------------------------------------------------------------------


class SpecPart(Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True, gc=False):
    """Base of everything that users write: unknown fields are refused."""


class StatusPart(Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, gc=False):
    """Base of everything that we write back: unknown fields are passed over when it is read."""


class LocalRef(SpecPart, frozen=True, kw_only=True):
    """A reference to an object of the same namespace."""

    name: Annotated[Name, Meta(description="Name of the object.")]


class ObjectRef(SpecPart, frozen=True, kw_only=True):
    """A reference to an object."""

    name: Annotated[Name, Meta(description="Name of the object.")]
    namespace: Annotated[
        NamespaceName | None, Meta(description="Namespace of the object; the referrer's own if not given.")
    ] = None


class Condition(StatusPart, frozen=True, kw_only=True):
    """One condition of a status (Kubernetes API conventions)."""

    type: Annotated[str, Meta(description="What the condition is about.", min_length=1, max_length=316)]
    status: Annotated[str, Meta(description="True, False or Unknown.", pattern="^(True|False|Unknown)$")]
    reason: Annotated[
        str,
        Meta(
            description="Why, as one CamelCase word.",
            pattern="^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
            min_length=1,
            max_length=1024,
        ),
    ]
    message: Annotated[str, Meta(description="Why, for people.", max_length=MAX_CONDITION_MESSAGE_CHARS)] = ""
    last_transition_time: Annotated[
        str, Meta(description="When the status last changed.", extra={"format": "date-time"})
    ] = ""
    observed_generation: Annotated[int, Meta(description="The generation that was looked at.", ge=0)] = 0


Conditions = Annotated[
    tuple[Condition, ...],
    Meta(
        description="The object's state, one condition a type.",
        max_length=MAX_CONDITIONS,
        extra={"list_map_keys": ["type"]},
    ),
]
ObservedGeneration = Annotated[
    Count,
    Meta(description="The `metadata.generation` that this status is about: an older one means it is yet to be seen."),
]
Time = Annotated[str, Meta(extra={"format": "date-time"})]
"""RFC 3339; `None` rather than empty where it is not known."""


def key_of(kind: str, metadata: ObjectMeta) -> ObjectKey:
    """Return the key of an object of `kind` with this metadata."""
    return ObjectKey(kind=kind, namespace=metadata.namespace, name=metadata.name)
