"""Find the rule for a request: host index -> path index -> ordered candidates -> first match.

Theory of operation. Rules are grouped by hostname. Each group holds a dict of exact paths, a list of patterns, a dict
of prefixes and a dict of gRPC methods, and walks them in that order, which is the order of precedence; so a walk that
stops at the first match returns the winner (`compiler.precedence`). A prefix is looked up by cutting the path at its
last slash until it is found: as many look-ups as the longest prefix of the group has segments, however many rules there
are and however long the path is. Groups are walked exact name first, then wildcards from the longest, then the group
of rules without hostnames: if no rule of the most specific hostname matches, less specific ones are asked
(Gateway API HTTPRoute hostnames).

Cost: independent of the number of rules, except that rules under one hostname and one path are tried one after the
other, and so are the patterns of one hostname.

A matcher is immutable; `updated` gives another one that shares what did not change. A rule that cannot be checked (bad
pattern, no engine) matches nothing and is listed in `problems`.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Generator, Iterator, Sequence

from datum_router.compiler.precedence import RuleRank, match_path_rank, path_rank_of, rule_rank
from datum_router.model.request import RequestHead
from datum_router.model.route import Match, PathKind, PathMatch, Rule, RuleId
from datum_router.reasons import Reason
from datum_router.routing.grpc import called_method, grpc_method_check, grpc_path, is_call
from datum_router.routing.headers import header_check
from datum_router.routing.host import ANY_HOST, hostnames_of
from datum_router.routing.method import listener_check, method_check
from datum_router.routing.normalize import BadPath
from datum_router.routing.path import MATCH_ALL, canonical_value, path_check, path_problem, path_regex
from datum_router.routing.predicate import HeadCheck, PathCheck, RuleProblem
from datum_router.routing.query import Params, ParamsCheck, parse_query, query_check
from datum_router.routing.regex import RegexEngine
from datum_router.routing.source import attachment_check, source_check

STEP_RULES = 250
"""Rules that are indexed, or linked, in one step: a few milliseconds."""

_UNPARSED: Params = {}
"""Stands for a query that no candidate has asked for yet; compared by identity."""


class _Candidate:
    """A rule with what is left to check once host and indexed path condition hold."""

    __slots__ = ("checks", "query_checks", "rule")

    def __init__(self, rule: Rule, checks: tuple[HeadCheck, ...], query_checks: tuple[ParamsCheck, ...]) -> None:
        self.rule = rule
        self.checks = checks
        self.query_checks = query_checks


# The candidates under one path, in order; if there is only one and nothing is left to check of it, that rule alone.
_Bucket = Rule | tuple[_Candidate | Rule, ...]
_Fullmatch = Callable[[bytes], object | None]


class Matcher:
    """An index over rules. The order in which rules are given does not matter.

    Attributes:
        problems: Conditions that cannot be checked, by rule; those rules match nothing.
    """

    __slots__ = ("_any", "_exact", "_longest_wildcard", "_regex", "_wildcards", "problems")

    def __init__(self, rules: Sequence[Rule] = (), regex: RegexEngine | None = None) -> None:
        """Build the index; about 10 us a rule."""
        self._regex = regex
        self._exact: dict[str, _HostIndex] = {}
        self._wildcards: dict[str, _HostIndex] = {}
        self._any: _HostIndex | None = None
        self._longest_wildcard = 0
        self.problems: tuple[tuple[RuleId, RuleProblem], ...] = ()
        if rules:
            for _ in self._fill(rules):
                pass

    @classmethod
    def in_steps(cls, rules: Sequence[Rule], regex: RegexEngine | None) -> Generator[None, None, Matcher]:
        """Build a matcher and yield after each `STEP_RULES` rules, so that whoever serves can do so in between."""
        matcher = cls((), regex)
        yield from matcher._fill(rules)
        return matcher

    def _fill(self, rules: Sequence[Rule]) -> Iterator[None]:
        problems: list[tuple[RuleId, RuleProblem]] = []
        groups: dict[str, list[_Entry]] = {}
        for position, rule in enumerate(rules, 1):
            if position % STEP_RULES == 0:
                yield
            entry = _make_entry(rule, self._regex)
            if isinstance(entry, RuleProblem):
                problems.append((rule.id, entry))
                continue
            for hostname in hostnames_of(rule.hostnames):
                group = groups.get(hostname)
                if group is None:
                    groups[hostname] = [entry]
                else:
                    group.append(entry)
        self.problems = tuple(problems)
        indexed = 0
        for hostname, entries in groups.items():
            indexed += len(entries)
            if indexed >= STEP_RULES:
                indexed = 0
                yield
            self._set(hostname, _HostIndex(entries))
        self._longest_wildcard = max(map(len, self._wildcards), default=0)

    def _set(self, hostname: str, index: _HostIndex | None) -> None:
        if hostname == ANY_HOST:
            self._any = index
            return
        is_wildcard = hostname.startswith("*.")
        table, name = (self._wildcards, hostname[1:]) if is_wildcard else (self._exact, hostname)
        if index is None:
            table.pop(name, None)
        else:
            table[name] = index

    def updated(self, removed: Sequence[Rule], added: Sequence[Rule]) -> Matcher:
        """Return a matcher without `removed`, which this one holds, and with `added`; this one stays as it is.

        Everything but the touched paths of the touched hosts is shared. Costs about 20 us for each of these rules,
        plus a copy of each touched table.
        """
        changes: dict[str, tuple[list[_Entry], list[_Entry]]] = {}
        problems = self.problems
        if problems:
            gone = {rule.id for rule in removed}
            problems = tuple(item for item in problems if item[0] not in gone)
        for side, rules in enumerate((removed, added)):
            for rule in rules:
                entry = _make_entry(rule, self._regex)
                if not isinstance(entry, RuleProblem):
                    for hostname in hostnames_of(rule.hostnames):
                        changes.setdefault(hostname, ([], []))[side].append(entry)
                elif rules is added:
                    problems = (*problems, (rule.id, entry))
        new = Matcher((), self._regex)
        new.problems = problems
        new._any = self._any
        is_wild = any(hostname.startswith("*.") for hostname in changes)
        is_exact = any(hostname and not hostname.startswith("*.") for hostname in changes)
        new._wildcards = dict(self._wildcards) if is_wild else self._wildcards
        new._exact = dict(self._exact) if is_exact else self._exact
        for hostname, (out, into) in changes.items():
            before = self._index(hostname) or _HostIndex([])
            new._set(hostname, before.updated(out, into))
        new._longest_wildcard = max(map(len, new._wildcards), default=0)
        return new

    def updated_in_steps(self, removed: Sequence[Rule], added: Sequence[Rule]) -> Generator[None, None, Matcher]:
        """Do as `updated` does and yield after each `STEP_RULES` rules; without any it is the same matcher."""
        new = self
        for start in range(0, len(removed), STEP_RULES):  # all of them first: an added one may be of the same id
            new = new.updated(removed[start : start + STEP_RULES], ())
            yield
        for start in range(0, len(added), STEP_RULES):
            new = new.updated((), added[start : start + STEP_RULES])
            yield
        return new

    def _index(self, hostname: str) -> _HostIndex | None:
        if hostname == ANY_HOST:
            return self._any
        return self._wildcards.get(hostname[1:]) if hostname.startswith("*.") else self._exact.get(hostname)

    def match(self, head: RequestHead) -> Rule | None:
        """Return the rule that wins for `head`, None if no rule matches."""
        host = head.host
        index = self._exact.get(host)
        if index is not None:
            rule = index.find(head)
            if rule is not None:
                return rule
        if self._longest_wildcard:
            rule = self._find_wildcard(head, host)
            if rule is not None:
                return rule
        index = self._any
        return None if index is None else index.find(head)

    def _find_wildcard(self, head: RequestHead, host: str) -> Rule | None:
        wildcards = self._wildcards
        # A wildcard stands for at least one character, and no suffix is longer than the longest one.
        cut = host.find(".", max(1, len(host) - self._longest_wildcard))
        while cut > 0:
            index = wildcards.get(host[cut:])
            if index is not None:
                rule = index.find(head)
                if rule is not None:
                    return rule
            cut = host.find(".", cut + 1)
        return None


class _Entry:
    """A rule ready for a host index: its indexed path condition and its candidate. Shared by all its hostnames."""

    __slots__ = ("candidate", "fullmatch", "kind", "value")

    def __init__(
        self, kind: PathKind | None, value: str, fullmatch: _Fullmatch | None, candidate: _Candidate | Rule
    ) -> None:
        self.kind = kind  # None: indexed by gRPC method alone
        self.value = value
        self.fullmatch = fullmatch
        self.candidate = candidate


def _make_entry(rule: Rule, regex: RegexEngine | None) -> _Entry | RuleProblem:
    """Split a rule into the path condition to index and the rest; the most specific path condition is indexed."""
    match = rule.match
    paths, path_checks = _split_paths(match, regex)
    if isinstance(path_checks, RuleProblem):
        return path_checks
    checks: list[HeadCheck] = []
    query_checks: list[ParamsCheck] = []
    if rule.listeners:
        checks.append(listener_check(rule.listeners))
    for path_test in path_checks:
        checks.append(_on_path(path_test))
    if match.is_grpc_call:
        checks.append(_on_path(is_call))
    if match.methods:
        checks.append(method_check(match.methods))
    for position, condition in enumerate(match.headers):
        check = header_check(condition, regex, f"headers[{position}]")
        if isinstance(check, RuleProblem):
            return check
        checks.append(check)
    for position, condition in enumerate(match.query):
        query = query_check(condition, regex, f"query[{position}]")
        if isinstance(query, RuleProblem):
            return query
        query_checks.append(query)
    if match.source_cidrs:
        source = source_check(match.source_cidrs)
        if isinstance(source, RuleProblem):
            return source
        checks.append(source)
    if match.source_attachment:
        checks.append(attachment_check(match.source_attachment))
    candidate = _Candidate(rule, tuple(checks), tuple(query_checks)) if checks or query_checks else rule
    if paths is None:
        return _Entry(None, match.grpc_method, None, candidate)
    value = canonical_value(paths)
    if isinstance(value, BadPath):
        return RuleProblem("path", Reason.INVALID_VALUE, value.detail)
    fullmatch: _Fullmatch | None = None
    if paths.kind is PathKind.REGEX:
        compiled = path_regex(value, regex)
        if isinstance(compiled, RuleProblem):
            return compiled
        fullmatch = compiled.fullmatch
    return _Entry(paths.kind, value, fullmatch, candidate)


def _split_paths(match: Match, regex: RegexEngine | None) -> tuple[PathMatch | None, list[PathCheck] | RuleProblem]:
    """Return the path condition to index (None: the gRPC method alone) and checks for what else is said of the path."""
    path = match.path
    implied = grpc_path(match)
    if implied is None and not match.grpc_method:
        return path, []
    if implied is None:
        method = grpc_method_check(match.grpc_method)
        if path.kind is PathKind.PREFIX and canonical_value(path) == MATCH_ALL:
            return None, []
        return path, [method]
    if path.kind is PathKind.PREFIX and canonical_value(path) == MATCH_ALL:
        return implied, []
    indexed, other = (path, implied) if path_rank_of(path) == match_path_rank(match) else (implied, path)
    check = path_check(other, regex)
    return indexed, check if isinstance(check, RuleProblem) else [check]


def _on_path(check: PathCheck) -> HeadCheck:
    return lambda head: check(head.path)


class _HostIndex:
    """The rules under one hostname."""

    __slots__ = ("_exact", "_grpc_methods", "_longest", "_patterns", "_prefixes", "_root")

    def __init__(self, entries: Sequence[_Entry]) -> None:
        """Take entries in any order. Parts that nothing is in are None, since most hosts use only one."""
        exact: dict[str, list[_Candidate | Rule]] = {}
        prefixes: dict[str, list[_Candidate | Rule]] = {}
        methods: dict[str, list[_Candidate | Rule]] = {}
        patterns: list[tuple[_Fullmatch, tuple[_Candidate | Rule, ...]]] = []
        for entry in entries:
            if entry.fullmatch is not None:
                patterns.append((entry.fullmatch, (entry.candidate,)))
                continue
            table = methods if entry.kind is None else exact if entry.kind is PathKind.EXACT else prefixes
            candidates = table.get(entry.value)
            if candidates is None:
                table[entry.value] = [entry.candidate]
            else:
                candidates.append(entry.candidate)
        root = prefixes.pop(MATCH_ALL, None)
        self._exact = _buckets(exact)
        self._patterns = tuple(sorted(patterns, key=lambda item: _rank_of(item[1][0])))
        self._prefixes = _buckets(prefixes)
        self._longest = max(map(len, prefixes), default=0)
        self._grpc_methods = _buckets(methods)
        self._root: _Bucket = _bucket(sorted(root, key=_rank_of)) if root else ()

    def updated(self, removed: Sequence[_Entry], added: Sequence[_Entry]) -> _HostIndex | None:
        """Return an index without `removed` and with `added`, None if nothing is left."""
        new = _HostIndex([])
        new._exact, new._prefixes, new._grpc_methods = self._exact, self._prefixes, self._grpc_methods
        new._patterns, new._root, new._longest = self._patterns, self._root, self._longest
        copied: set[str] = set()
        for entry in removed:
            new._change(entry, copied, is_added=False)
        for entry in added:
            new._change(entry, copied, is_added=True)
        if new._prefixes is not self._prefixes:
            new._longest = max(map(len, new._prefixes or ()), default=0)
        is_empty = not (new._exact or new._prefixes or new._grpc_methods or new._patterns or new._root)
        return None if is_empty else new

    def _change(self, entry: _Entry, copied: set[str], *, is_added: bool) -> None:
        """Put an entry in, or take the one of its rule out; `copied` names the tables that are ours to change."""
        rule = _rule_of(entry.candidate)
        if entry.fullmatch is not None:
            patterns = [item for item in self._patterns if _rule_of(item[1][0]).id != rule.id]
            if is_added:
                at = bisect.bisect(patterns, rule_rank(rule), key=lambda item: _rank_of(item[1][0]))
                patterns.insert(at, (entry.fullmatch, (entry.candidate,)))
            self._patterns = tuple(patterns)
            return
        if entry.kind is PathKind.PREFIX and entry.value == MATCH_ALL:
            self._root = _changed(self._root, entry.candidate, is_added=is_added) or ()
            return
        name = "_grpc_methods" if entry.kind is None else "_exact" if entry.kind is PathKind.EXACT else "_prefixes"
        table: dict[str, _Bucket] = getattr(self, name) or {}
        if name not in copied:
            copied.add(name)
            table = dict(table)
        bucket = _changed(table.get(entry.value, ()), entry.candidate, is_added=is_added)
        if bucket:
            table[entry.value] = bucket
        else:
            table.pop(entry.value, None)
        setattr(self, name, table or None)
        if not table:
            copied.discard(name)

    def find(self, head: RequestHead) -> Rule | None:
        """Return the first rule in order that matches, the host being settled."""
        path = head.path
        bucket: _Bucket | None
        if self._exact is not None:
            bucket = self._exact.get(path)
            if bucket is not None:
                rule = bucket if isinstance(bucket, Rule) else _first(bucket, head)
                if rule is not None:
                    return rule
        if self._patterns:
            octets = path.encode("latin-1", "replace")
            for fullmatch, candidates in self._patterns:
                if fullmatch(octets) is not None:
                    rule = _first(candidates, head)
                    if rule is not None:
                        return rule
        prefixes = self._prefixes
        if prefixes is not None:
            longest = self._longest
            part = path if len(path) <= longest else path[: path.rfind("/", 0, longest + 1)]
            while len(part) > 1:
                bucket = prefixes.get(part)
                if bucket is not None:
                    rule = bucket if isinstance(bucket, Rule) else _first(bucket, head)
                    if rule is not None:
                        return rule
                part = part[: part.rfind("/")]
        if self._grpc_methods is not None:
            bucket = self._grpc_methods.get(called_method(path))
            if bucket is not None:
                rule = bucket if isinstance(bucket, Rule) else _first(bucket, head)
                if rule is not None:
                    return rule
        root = self._root
        return root if isinstance(root, Rule) else _first(root, head)


def _buckets(table: dict[str, list[_Candidate | Rule]]) -> dict[str, _Bucket] | None:
    """Return the table with its candidates, which come in any order, in order of precedence."""
    for candidates in table.values():
        if len(candidates) > 1:
            candidates.sort(key=_rank_of)
    return {value: _bucket(candidates) for value, candidates in table.items()} if table else None


def _bucket(candidates: list[_Candidate | Rule]) -> _Bucket:
    first = candidates[0]
    # Candidates behind one that always matches are kept: it may be taken out one day.
    return first if len(candidates) == 1 and isinstance(first, Rule) else tuple(candidates)


def _rule_of(candidate: _Candidate | Rule) -> Rule:
    return candidate if isinstance(candidate, Rule) else candidate.rule


def _rank_of(candidate: _Candidate | Rule) -> RuleRank:
    return rule_rank(_rule_of(candidate))


def _changed(bucket: _Bucket, candidate: _Candidate | Rule, *, is_added: bool) -> _Bucket | None:
    """Return a bucket with a candidate in its place, or without that of the same rule; None: nothing is left."""
    rule = _rule_of(candidate)
    candidates = [bucket] if isinstance(bucket, Rule) else list(bucket)
    candidates = [item for item in candidates if _rule_of(item).id != rule.id]
    if is_added:
        at = bisect.bisect(candidates, rule_rank(rule), key=_rank_of)
        candidates.insert(at, candidate)
    return _bucket(candidates) if candidates else None


def _first(bucket: tuple[_Candidate | Rule, ...], head: RequestHead) -> Rule | None:
    """Return the first rule of a bucket whose remaining conditions hold. The query is parsed once, if at all."""
    params: Params | None = _UNPARSED
    for candidate in bucket:
        if isinstance(candidate, Rule):
            return candidate
        for check in candidate.checks:
            if not check(head):
                break
        else:
            if not candidate.query_checks:
                return candidate.rule
            if params is _UNPARSED:
                params = parse_query(head.query)
            if params is None:  # too many parameters: no condition on the query holds
                continue
            for query_check_ in candidate.query_checks:
                if not query_check_(params):
                    break
            else:
                return candidate.rule
    return None


def rule_problems(rule: Rule, regex: RegexEngine | None) -> tuple[RuleProblem, ...]:
    """Return every condition of a rule that cannot be checked, for diagnostics; empty for a usable rule."""
    match = rule.match
    checks: list[object] = [path_problem(match.path, regex)]
    implied = grpc_path(match)
    if implied is not None:
        checks.append(path_problem(implied, regex))
    if match.headers or match.query:
        checks += [header_check(item, regex, f"headers[{n}]") for n, item in enumerate(match.headers)]
        checks += [query_check(item, regex, f"query[{n}]") for n, item in enumerate(match.query)]
    if match.source_cidrs:
        checks.append(source_check(match.source_cidrs))
    return tuple([check for check in checks if isinstance(check, RuleProblem)])
