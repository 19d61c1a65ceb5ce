"""What becomes of the pictures of one class: left out, not needed, or in a split. Pure: knows readings, reads no file.

audit → one of each file → groups → split → 3:7 mixture within each split.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pillsnap.core.errors import DataError
from pillsnap.core.manifest import SPLITS, Split
from pillsnap.data.audit import COPIES, AuditLimits, Finding, judge, size_note
from pillsnap.data.capture_groups import capture_groups
from pillsnap.data.earlier import EarlierSplits
from pillsnap.data.groups import Links, Usable, drop_duplicates, near_duplicate_links, sitting_id, straddling
from pillsnap.data.mixing import Candidate, ClassMix, choose_balanced, mix_class, share_out
from pillsnap.data.names import Domain
from pillsnap.data.reading import Reading
from pillsnap.data.sources import Picture
from pillsnap.data.split import SHARES, check_no_straddle, split_groups

_LISTED = 5


@dataclass(frozen=True)
class Rules:
    """What the choice depends on, beside the pictures."""

    seed: int
    ratio: float
    """Share of real photos in a class."""
    minimum: int
    """Images a class needs at least."""
    limits: AuditLimits = field(default_factory=AuditLimits)
    odd_sizes: Mapping[Domain, frozenset[tuple[int, int]]] = field(
        default_factory=lambda: {"studio": frozenset(), "real": frozenset()}
    )
    wrong: Mapping[str, str] = field(default_factory=dict)
    """Path → reason, of files that lie under several drugs."""
    alike: Mapping[str, str] = field(default_factory=dict)
    """Path → path of a picture of another drug that hashes alike."""


@dataclass(frozen=True)
class Selection:
    """The outcome for one class."""

    kcode: str
    usable: tuple[Usable, ...]
    """Sorted by path; one of each file."""
    groups: Mapping[str, str]
    splits: Mapping[str, Split]
    """Path → split, of every usable picture, whether it is used or not."""
    used: frozenset[str]
    mix: ClassMix
    findings: tuple[Finding, ...]
    copies: Mapping[str, str]
    """Path → path of the copy that is used."""
    remembered: Mapping[str, Split]
    """sha256 → split, of the pictures that had one before."""

    def chosen(self) -> list[Usable]:
        """The pictures that are used."""
        return [one for one in self.usable if one.path in self.used]


def select(kcode: str, pictures: Sequence[tuple[Picture, Reading]], rules: Rules, earlier: EarlierSplits) -> Selection:
    """Decide about every picture of one class.

    Raises:
        DataError: a near-duplicate pair, a group or a sitting would lie in two splits, or a picture change its split.
    """
    findings = [finding for picture, reading in pictures for finding in _findings(picture, reading, rules)]
    out = {finding.path for finding in findings if finding.quarantines}
    fit = [_usable(picture, reading) for picture, reading in pictures if picture.path not in out]
    unique, copies = drop_duplicates(fit)
    links = near_duplicate_links(unique)
    remembered = earlier.of(reading.sha256 for _, reading in pictures)
    grouping = capture_groups(unique, links, remembered, earlier.sittings, earlier.placed(remembered))
    usable = tuple(one for one in unique if one.path in grouping.groups)
    splits = _split(usable, grouping.groups, grouping.pinned, rules.seed)
    _check(usable, grouping.groups, splits, remembered)
    _check_near_duplicates(straddling(unique, links, splits))
    findings += _bridges(grouping.bridges, unique, links, splits, remembered)
    used, mix = _mix(usable, grouping.groups, splits, rules)
    return Selection(kcode, usable, grouping.groups, splits, used, mix, tuple(findings), copies, remembered)


def ledger_rows(selection: Selection, pictures: Sequence[tuple[Picture, Reading]]) -> Iterator[dict[str, Any]]:
    """One row for every picture that was found (see `pillsnap.data.ledger`)."""
    reasons = {finding.path: (finding.code, finding.detail) for finding in selection.findings if finding.quarantines}
    reasons |= {path: (COPIES, f"is the same file as {kept}") for path, kept in selection.copies.items()}
    for picture, reading in pictures:
        path = picture.path
        code, reason = reasons.get(path, (None, None))
        split = selection.splits.get(selection.copies.get(path, path), selection.remembered.get(reading.sha256))
        yield {
            "path": path,
            "kcode": picture.kcode,
            "domain": picture.domain,
            "sha256": reading.sha256,
            "used": path in selection.used,
            "split": split,
            "group": selection.groups.get(path),
            "code": code,
            "reason": reason,
        }


def _findings(picture: Picture, reading: Reading, rules: Rules) -> Iterator[Finding]:
    path = picture.path
    yield from judge(reading, rules.limits)
    if path in rules.wrong:
        yield Finding(path, "duplicate_across_classes", rules.wrong[path], True)
    elif path in rules.alike:
        yield Finding(path, "looks_like_another_class", f"hashes like {rules.alike[path]}", False)
    note = size_note(reading, picture.domain, rules.odd_sizes)
    if note is not None:
        yield note


def _usable(picture: Picture, reading: Reading) -> Usable:
    return Usable(
        picture.path,
        picture.kcode,
        picture.domain,
        picture.condition,
        reading.sha256,
        reading.dhash,
        reading.phash,
        reading.thumb,
        picture.combination,
        reading.box,
    )


def _bridges(
    paths: Collection[str],
    unique: Sequence[Usable],
    links: Links,
    splits: Mapping[str, Split],
    remembered: Mapping[str, Split],
) -> Iterator[Finding]:
    """Why these pictures have no place, said by what has one: a second run says the same."""
    ties: dict[str, set[Split]] = {path: set() for path in paths}
    for one in unique:
        if one.path in ties and one.sha256 in remembered:
            ties[one.path].add(remembered[one.sha256])
    for first, second in links.tolist() if paths else ():
        for one, other in ((unique[first], unique[second]), (unique[second], unique[first])):
            if one.path in ties and other.path in splits:
                ties[one.path].add(splits[other.path])
    for path, found in ties.items():
        among = " and in ".join(split for split in SPLITS if split in found)
        detail = f"ties together what is in {among}" if len(found) > 1 else "its sitting lies in another split"
        yield Finding(path, "bridges_splits", detail, True)


def _split(
    usable: Sequence[Usable], groups: Mapping[str, str], pinned: Mapping[str, Split], seed: int
) -> dict[str, Split]:
    """Every group gets a split; each domain is balanced by itself."""
    sizes = Counter(groups[one.path] for one in usable)
    domains: dict[str, Domain] = {}
    for one in usable:
        group = groups[one.path]
        # A group that a copy ties over both domains counts where test photos are scarce.
        domains[group] = "real" if one.domain == "real" else domains.get(group, one.domain)
    single = {groups[one.path] for one in usable if not one.combination}
    # Pictures of several pills only train, and must not fill the training share of the single pills.
    of_group: dict[str, Split] = dict.fromkeys(set(sizes) - single, "train")
    of_group |= split_groups({group: (domains[group], sizes[group]) for group in single}, seed, pinned)
    return {one.path: of_group[groups[one.path]] for one in usable}


def _check(
    usable: Sequence[Usable], groups: Mapping[str, str], splits: Mapping[str, Split], remembered: Mapping[str, Split]
) -> None:
    """The promises, checked on the outcome and not on the way to it."""
    check_no_straddle((groups[one.path], splits[one.path]) for one in usable)
    check_no_straddle(
        (sitting_id(one.kcode, one.domain, one.condition), splits[one.path])
        for one in usable
        if one.condition is not None and not one.combination
    )
    moved = [one.path for one in usable if remembered.get(one.sha256, splits[one.path]) != splits[one.path]]
    if moved:
        raise DataError(f"{len(moved)} pictures would change their split, such as {moved[0]}")
    tested = [one.path for one in usable if one.combination and splits[one.path] != "train"]
    if tested:
        raise DataError(f"{len(tested)} pictures of several pills would not be in train, such as {tested[0]}")


def _mix(
    usable: Sequence[Usable], groups: Mapping[str, str], splits: Mapping[str, Split], rules: Rules
) -> tuple[frozenset[str], ClassMix]:
    real = [one.path for one in usable if one.domain == "real"]
    studio: dict[Split, list[Candidate]] = defaultdict(list)
    for one in usable:
        if one.domain == "studio":
            studio[splits[one.path]].append(Candidate(one.path, groups[one.path], _stratum(one)))
    mix = mix_class(len(real), sum(map(len, studio.values())), rules.ratio, rules.minimum)
    counts = share_out(mix.studio_used, {split: len(studio[split]) for split in SPLITS}, SHARES)
    chosen = [key for split in SPLITS for key in choose_balanced(studio[split], counts[split], rules.seed)]
    return frozenset([*real, *chosen]), mix


def _stratum(picture: Usable) -> tuple[bool, int, int] | None:
    condition = picture.condition
    return None if condition is None else (picture.combination, condition.side, condition.background)


def _check_near_duplicates(pairs: Sequence[tuple[str, str]]) -> None:
    if pairs:
        listed = "; ".join(f"{one} = {two}" for one, two in pairs[:_LISTED])
        raise DataError(
            f"{len(pairs)} pairs of near-duplicates lie in two splits, so the test would leak: {listed}; remove one of "
            "each, or split anew with --fresh"
        )
