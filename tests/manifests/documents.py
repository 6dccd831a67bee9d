"""What the YAML files under manifests/ hold, for tests of several folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
MANIFESTS = REPOSITORY / "manifests"
NAMESPACE = "datum-router"

Document = dict[str, Any]


def documents(path: Path) -> list[Document]:
    """Return the documents of a file."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def files() -> list[Path]:
    """Return every file of manifests/ that `kubectl apply -f` takes."""
    return sorted(path for path in MANIFESTS.rglob("*.yaml") if path.name != "kustomization.yaml")


def of_kind(*kinds: str, within: Path | None = None) -> Iterator[tuple[Path, Document]]:
    """Give every document of these kinds, and its file."""
    for path in files():
        if within is None or path.is_relative_to(within):
            yield from ((path, document) for document in documents(path) if document["kind"] in kinds)


def name_of(document: Document) -> str:
    """Return what identifies a document, for messages."""
    metadata = document["metadata"]
    return f"{document['kind']} {metadata.get('namespace', '')}/{metadata['name']}"
