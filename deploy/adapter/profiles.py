"""Finds device profiles: ours in ``profiles/``, anybody's through the entry-point group ``deploy.profiles``,
and the file that is named instead of a target.

A profile may inherit once. Its tables then override the parent's key by key, its ``[[runtime]]`` entries
those of the same name; lists, ``compute`` among them, are replaced, never joined. A runtime
with ``like = "android"`` starts from that profile's runtime of the same name.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from pydantic import ValidationError, model_validator

from deploy.errors import ToolchainError, UsageError
from deploy.spec.document import parse_toml
from deploy.spec.profile import Profile

GROUP = "deploy.profiles"
_PACKAGE = Path(__file__).parents[1]
_OURS = (_PACKAGE / "_profiles", _PACKAGE.parent / "profiles")
"""Where our own files lie: in an installed wheel, in a checkout."""

_FILE = ".toml"
_FROM_FILES: dict[str, tuple[Profile, Path]] = {}
"""What files that were named have added, for as long as the process lives, and which files these are."""
_NOT_INHERITED = ("aliases", "on_host")
"""What belongs to one profile alone: the names it answers to and what it stands for on a host."""

Table = Mapping[str, object]


def load_profile(name: str) -> Profile:
    """The profile of that name or alias, or in that file. Raises UsageError naming the nearest where there is
    none.

    >>> load_profile("rpi").name
    'rpi5'
    """
    name = target_name(name)
    profiles = _known_here()
    for profile in profiles.values():
        if name == profile.name or name in profile.aliases:
            return profile
    known = sorted({word for p in profiles.values() for word in (p.name, *p.aliases)})
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    suggestion = f"did you mean {' or '.join(near)}? " if near else ""
    raise UsageError(f"unknown target '{name}'", hint=f"{suggestion}`deploy targets` lists all of them")


def profile_names() -> list[str]:
    """Names of all profiles, without aliases, sorted."""
    return list(_known_here())


def all_profiles() -> list[Profile]:
    """All profiles, sorted by name."""
    return list(_known_here().values())


def target_name(word: str, folder: Path = Path()) -> str:
    """The name of a target that is given as one, or as the path of a profile's file as seen from ``folder``.

    What a file says is known by its name from then on, in this process. Raises UsageError where the file
    cannot be read, is malformed, or takes a name that an installed profile has, or another file that was
    named and says something else.
    """
    if not word.endswith(_FILE):
        return word
    path = (folder / word).resolve()
    ours = _sources(_folders())
    if (own := next((s for s in ours if Path(s.origin).resolve() == path), None)) is not None:
        return own.profile_name
    source = _read(path)
    by_name = {other.profile_name: other for other in ours}
    profile = _parse(source, by_name)
    _check_names([*_installed().values(), profile], [*ours, source])
    _check_hosts([profile], {**by_name, source.profile_name: source})
    _check_named(profile, path)
    if (before := _FROM_FILES.get(profile.name)) is None or before[0] != profile:
        _FROM_FILES[profile.name] = profile, path
    return profile.name


def resolve(profile: Profile, features: Collection[str]) -> Profile:
    """The profile to use on a host with these CPU ``features`` (flags as Linux spells them).

    A profile that means "this machine" becomes its first variant all of whose features the host has; any
    other is returned as it is. Raises UsageError where no variant fits.
    """
    if not profile.on_host:
        return profile
    for variant in profile.on_host:
        if set(variant.features) <= set(features):
            return load_profile(variant.use)
    needed = " or ".join("+".join(variant.features) for variant in profile.on_host)
    raise UsageError(
        f"this machine's CPU is not one that '{profile.name}' stands for: it has none of {needed}",
        hint=f"name a fixed target instead: {', '.join(dict.fromkeys(v.use for v in profile.on_host))}",
    )


def profile_for(arch: str, features: Collection[str]) -> Profile:
    """The profile that a machine with this CPU can stand in for: of several that which asks for most.

    Raises UsageError where there is none.
    """
    for profile in all_profiles():
        if profile.on_host and profile.arch == arch:
            return resolve(profile, features)
    able = [p for p in all_profiles() if p.arch == arch and p.stand_in and set(p.features) <= set(features)]
    if not able:
        raise UsageError(
            f"no profile describes a machine like this one ({arch})",
            hint="write one that inherits from the nearest: see Add a profile",
        )
    return max(able, key=lambda p: len(p.features))


def read_profiles(folders: Iterable[Traversable]) -> dict[str, Profile]:
    """All profiles in ``folders``, by name, sorted, with inheritance resolved.

    Raises UsageError where a file is malformed (with file, line and key), where two files claim one name
    or alias, or where a profile refers to one that does not exist.
    """
    sources = _sources(folders)
    by_name = {source.profile_name: source for source in sources}
    profiles = [_parse(source, by_name) for source in sorted(sources, key=lambda s: s.profile_name)]
    _check_names(profiles, sources)
    _check_hosts(profiles, by_name)
    return {profile.name: profile for profile in profiles}


def merge(parent: Table, child: Table) -> dict[str, object]:
    """``parent`` with ``child``'s keys over it: tables key by key, ``runtime`` entries by name, others whole.

    The child's runtimes come first, in its own order.

    >>> merge({"memory": {"size": 8, "l2": 1}, "notes": ["a"]}, {"memory": {"size": 2}, "notes": ["b"]})
    {'memory': {'size': 2, 'l2': 1}, 'notes': ['b']}
    """
    merged = dict(parent)
    for key, value in child.items():
        inherited = parent.get(key)
        if isinstance(value, dict) and isinstance(inherited, dict):
            merged[key] = merge(inherited, value)
        elif key == "runtime" and isinstance(value, list) and isinstance(inherited, list):
            merged[key] = _merge_runtimes(inherited, value)
        else:
            merged[key] = value
    return merged


def _merge_runtimes(inherited: list[Table], own: list[Table]) -> list[Table]:
    parents = {runtime.get("name"): runtime for runtime in inherited}
    overridden = {runtime.get("name") for runtime in own}
    rest = [runtime for runtime in inherited if runtime.get("name") not in overridden]
    return [merge(parents.get(runtime.get("name"), {}), runtime) for runtime in own] + rest


@dataclass(frozen=True)
class _Source:
    """One TOML file, read but not yet checked."""

    origin: str
    text: str
    table: Table

    @property
    def profile_name(self) -> str:
        return str(self.table.get("name", self.origin))


def _sources(folders: Iterable[Traversable]) -> list[_Source]:
    return [_read(path) for folder in folders for path in folder.iterdir() if path.name.endswith(_FILE)]


def _read(path: Traversable) -> _Source:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "it is not text in UTF-8"
        raise UsageError(
            f"{path}: cannot be read: {reason}", hint="name a profile's file, or a target"
        ) from e
    try:
        return _Source(str(path), text, tomllib.loads(text))
    except tomllib.TOMLDecodeError as e:
        raise UsageError(f"{path}: not valid TOML: {e}", hint="fix the line named above") from e


def _parse(source: _Source, by_name: Mapping[str, _Source]) -> Profile:
    inherited: dict[str, object] = {}
    if "inherits" in source.table:
        parent = _known(source.table["inherits"], "inherits", source, by_name)
        if "inherits" in parent.table:
            raise UsageError(
                f"{source.origin}: inherits '{parent.profile_name}', which itself inherits "
                f"'{parent.table['inherits']}'",
                hint="a profile inherits once: name the last one and repeat what differs",
            )
        spelt = _spelt_out(parent.table, parent, by_name)
        inherited = {key: value for key, value in spelt.items() if key not in _NOT_INHERITED}

    whole = merge(inherited, _spelt_out(source.table, source, by_name))
    try:
        return Profile.model_validate(whole)
    except ValidationError as e:
        raise _misspelt(source, whole) or e from e


def _misspelt(source: _Source, whole: Table) -> UsageError | None:
    """What is wrong with a profile, by the lines of its own text."""

    class Merged(Profile):
        """A profile whose text is read on top of what it refers to, so that errors keep its own lines."""

        @model_validator(mode="before")
        @classmethod
        def _over_parent(cls, _: dict[str, object]) -> dict[str, object]:
            return dict(whole)

    try:
        parse_toml(Merged, source.text, origin=source.origin)
    except UsageError as e:
        return e
    return None


def _spelt_out(table: Table, source: _Source, by_name: Mapping[str, _Source]) -> dict[str, object]:
    """The table with each runtime that is ``like`` another profile's written out."""
    runtimes = table.get("runtime")
    if not isinstance(runtimes, list):
        return dict(table)
    return {**table, "runtime": [_like(runtime, source, by_name) for runtime in runtimes]}


def _like(runtime: object, source: _Source, by_name: Mapping[str, _Source]) -> object:
    if not isinstance(runtime, dict) or "like" not in runtime:
        return runtime
    model = _known(runtime["like"], "a runtime is like", source, by_name)
    own = {key: value for key, value in runtime.items() if key != "like"}
    runtimes = model.table.get("runtime")
    for other in runtimes if isinstance(runtimes, list) else ():
        if other.get("name") == runtime.get("name") and "like" not in other:
            return merge(other, own)
    raise UsageError(
        f"{source.origin}: runtime '{runtime.get('name')}' is like that of '{model.profile_name}', "
        "which describes none",
        hint="name the profile in which the runtime is written out",
    )


def _known(name: object, how: str, source: _Source, by_name: Mapping[str, _Source]) -> _Source:
    found = by_name.get(str(name))
    if found is None:
        raise UsageError(
            f"{source.origin}: {how} '{name}', which is not a profile",
            hint=f"known profiles: {', '.join(sorted(by_name))}",
        )
    return found


def _check_names(profiles: Iterable[Profile], sources: Iterable[_Source]) -> None:
    """Refuse a name or alias that two files claim."""
    names = [(source.profile_name, source.origin) for source in sources]
    origins = dict(names)
    claims = names + [(alias, origins[profile.name]) for profile in profiles for alias in profile.aliases]
    claimed: dict[str, str] = {}
    for word, origin in claims:
        if word in claimed:
            raise UsageError(
                f"{origin}: the name '{word}' is already taken by {claimed[word]}",
                hint="rename one of the two profiles or drop the alias",
            )
        claimed[word] = origin


def _check_named(profile: Profile, path: Path) -> None:
    """Refuse what another file that was named says otherwise; the same file may have been changed."""
    for other, origin in _FROM_FILES.values():
        shared = {profile.name, *profile.aliases} & {other.name, *other.aliases}
        if shared and path != origin and profile != other:
            raise UsageError(
                f"{path}: the name '{min(shared)}' is already taken by {origin}",
                hint="rename one of the two profiles or drop the alias",
            )


def _check_hosts(profiles: Iterable[Profile], by_name: Mapping[str, _Source]) -> None:
    """Refuse one that stands, on some host, for a profile that is not there."""
    for profile in profiles:
        for variant in profile.on_host:
            if variant.use not in by_name:
                raise UsageError(
                    f"{by_name[profile.name].origin}: on_host uses '{variant.use}', which is not a profile",
                    hint=f"known profiles: {', '.join(sorted(by_name))}",
                )


def _known_here() -> dict[str, Profile]:
    named = {name: profile for name, (profile, _) in _FROM_FILES.items()}
    return dict(sorted((_installed() | named).items()))


@cache
def _installed() -> dict[str, Profile]:
    return read_profiles(_folders())


def _folders() -> list[Traversable]:
    ours = next((folder for folder in _OURS if folder.is_dir()), None)
    if ours is None:
        raise ToolchainError(
            "the device profiles are missing from this installation",
            hint="reinstall: pip install --force-reinstall deploy-compiler",
        )
    return [ours, *(_folder(entry) for entry in entry_points(group=GROUP))]


def _folder(entry: EntryPoint) -> Traversable:
    try:
        return files(entry.value)
    except ImportError as e:
        raise ToolchainError(
            f"profiles '{entry.name}' cannot be loaded: {e}",
            hint=f"reinstall the package that provides them ({entry.value})",
        ) from e
