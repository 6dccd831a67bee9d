"""Which files a directory offers, and what identifies their content without reading it.

Two layouts matter. A plain directory, where editors leave swap and backup files that are not configuration. And a
Kubernetes ConfigMap or Secret volume, where every visible name is a symlink through `..data` to a directory with a
timestamp in its name, and an update renames a new `..data` into place: hidden names are skipped, so each file is
read once by its visible name, and its signature holds the resolved path, so the swap shows even where size and time
happen to be equal.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Mapping

import msgspec

MAX_FILES = 10_000
MAX_TOTAL_BYTES = 256 * 1024 * 1024
MAX_DIRECTORY_DEPTH = 32
SUFFIXES = (".yaml", ".yml", ".json")

# Backup and lock names of vim, Emacs, nano, JetBrains and rsync that end in one of SUFFIXES all the same;
# hidden names (.x.swp, .#x, ..data) are skipped before this is asked. `4913` and `x~` end in no suffix of ours.
_TEMPORARY = re.compile(r"#.*#|.*~|.*___jb_(?:tmp|old)___.*")


class Signature(msgspec.Struct, frozen=True):
    """What changes when a file's content may have changed; two equal ones mean: do not read it again."""

    resolved: str
    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """What a directory offers at one moment.

    Attributes:
        files: Visible path (as the user would type it) -> signature, sorted by path.
        unreadable: Path of a directory or file that could not be looked at -> what the system said.
        left_out: Files beyond a limit, by number or by total size; the last ones in order of path.
    """

    files: Mapping[str, Signature]
    unreadable: Mapping[str, str]
    left_out: frozenset[str] = frozenset()


def is_manifest_name(name: str) -> bool:
    """Tell whether a file of this name is read: by suffix, not hidden, not an editor's temporary file."""
    return name.endswith(SUFFIXES) and not name.startswith(".") and _TEMPORARY.fullmatch(name) is None


def list_files(root: str, *, max_files: int = MAX_FILES, max_total_bytes: int = MAX_TOTAL_BYTES) -> Listing:
    """Return the manifest files at or below `root`, which may be one file. Blocks; follows symlinks once.

    Directories are followed to `MAX_DIRECTORY_DEPTH` levels; a deeper one is listed as unreadable.

    Raises:
        OSError: `root` itself cannot be looked at.
    """
    info = os.stat(root)
    if not stat.S_ISDIR(info.st_mode):
        return Listing(files={root: _signature(os.path.realpath(root), info)}, unreadable={})
    found: dict[str, Signature] = {}
    unreadable: dict[str, str] = {}
    real = os.path.realpath(root)
    _walk(root, real, frozenset({real}), found, unreadable)
    kept: dict[str, Signature] = {}
    left_out: set[str] = set()
    total = 0
    for name in sorted(found):
        total += found[name].size
        if len(kept) < max_files and total <= max_total_bytes:
            kept[name] = found[name]
        else:
            left_out.add(name)
    return Listing(files=kept, unreadable=unreadable, left_out=frozenset(left_out))


def relist(before: Listing, paths: Collection[str], *, max_total_bytes: int = MAX_TOTAL_BYTES) -> Listing | None:
    """Return `before` with new signatures for some files, None if only listing everything can tell what is there now.

    One of 500 files costs 30 us, where all of them cost 3 ms. Blocks.

    Args:
        paths: Files that have changed; nothing else has. None is said of files that are new, gone, or no plain files.
    """
    if before.left_out or before.unreadable:
        return None
    files = dict(before.files)
    for path in paths:
        known = files.get(path)
        if known is None:
            return None
        try:
            info = os.lstat(path)
        except OSError:
            return None
        # A visible name that leads elsewhere has a signature of where it leads.
        if not stat.S_ISREG(info.st_mode) or os.path.basename(known.resolved) != os.path.basename(path):
            return None
        files[path] = _signature(known.resolved, info)
    if sum(signature.size for signature in files.values()) > max_total_bytes:
        return None
    return Listing(files=files, unreadable={})


def _walk(
    shown: str, real: str, above: frozenset[str], found: dict[str, Signature], unreadable: dict[str, str]
) -> None:
    try:
        with os.scandir(shown) as entries:
            children = list(entries)
    except FileNotFoundError:
        if len(above) == 1:
            raise  # the root itself went away
        return  # went away between the listing above and this one: as if it had never been listed
    except OSError as error:
        if len(above) == 1:
            raise
        unreadable[shown] = error.strerror or str(error)
        return
    shown_prefix, real_prefix = os.path.join(shown, ""), os.path.join(real, "")
    for entry in children:
        if entry.name.startswith("."):
            continue
        path = f"{shown_prefix}{entry.name}"
        try:
            info = entry.stat()
            resolved = os.path.realpath(path) if entry.is_symlink() else f"{real_prefix}{entry.name}"
        except FileNotFoundError:
            continue  # vanished, or a symlink to nothing: the swap of a ConfigMap passes through this
        except OSError as error:
            if is_manifest_name(entry.name):
                unreadable[path] = error.strerror or str(error)
            continue
        if stat.S_ISDIR(info.st_mode):
            if resolved in above:
                continue  # a directory that is its own ancestor through a symlink would never end
            if len(above) >= MAX_DIRECTORY_DEPTH:
                unreadable[path] = f"directories are nested deeper than {MAX_DIRECTORY_DEPTH} levels"
                continue
            _walk(path, resolved, above | {resolved}, found, unreadable)
        elif stat.S_ISREG(info.st_mode) and is_manifest_name(entry.name):
            found[path] = _signature(resolved, info)


def _signature(resolved: str, info: os.stat_result) -> Signature:
    return Signature(resolved, info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
