"""gRPC predicates: conditions on the path `/package.Service/Method` (gRPC over HTTP/2).

A gRPC condition reads the path alone, not the content type: a client that lies about its type must not reach
another rule than one that does not.
"""

from __future__ import annotations

from datum_router.model.route import Match, PathKind, PathMatch
from datum_router.routing.predicate import PathCheck


def grpc_path(match: Match) -> PathMatch | None:
    """Return the path condition that a gRPC service stands for, None if no service is named.

    Service and method are the exact path `/service/method`; a service alone is the prefix `/service`.
    """
    if not match.grpc_service:
        return None
    if match.grpc_method:
        return PathMatch(kind=PathKind.EXACT, value=f"/{match.grpc_service}/{match.grpc_method}")
    return PathMatch(kind=PathKind.PREFIX, value=f"/{match.grpc_service}")


def called_method(path: str) -> str:
    """Return the method of a gRPC path, empty if the path has not exactly two segments, neither empty."""
    cut = path.find("/", 1)
    if cut <= 1 or path.find("/", cut + 1) >= 0:
        return ""
    return path[cut + 1 :]


def is_call(path: str) -> bool:
    """Tell whether a path is a gRPC call's: `/service/method`."""
    return called_method(path) != ""


def grpc_method_check(method: str) -> PathCheck:
    """Return the check of a method alone, of any service."""
    return lambda path: called_method(path) == method
