"""The settings that a subject is opened with: those of the profile, others worth trying, those of a lock."""

from __future__ import annotations

from dataclasses import replace

from deploy.adapter.protocol import Tunes, Variant
from deploy.quantize.candidate import Subject
from deploy.spec.manifest import Lock


def variants_of(subject: Subject, threads: int) -> list[Variant]:
    """The settings that the backend holds worth trying with so many threads."""
    if not isinstance(subject.backend, Tunes):
        return []
    return subject.backend.variants(subject.runtime, subject.backend.options(subject.runtime, threads))


def in_float32(subject: Subject) -> Variant | None:
    """The setting by which floats are computed in float32, where the profile has a narrower type."""
    return next((v for v in variants_of(subject, subject.options.threads) if v.around == "float32"), None)


def reopened(subject: Subject, variant: Variant) -> Subject:
    """The subject opened with other settings, by which floats may be computed in another type."""
    runtime = subject.runtime
    if variant.around is not None:
        runtime = runtime.model_copy(update={"around": variant.around})
    return replace(subject, options=variant.options, runtime=runtime)


def as_locked(subject: Subject, lock: Lock | None) -> Subject:
    """The subject with the settings of an earlier build, if that chose its runtime."""
    if lock is None or not lock.options or lock.runtime != subject.runtime.name:
        return subject
    options = subject.backend.options_type.model_validate(lock.options)
    known = variants_of(subject, options.threads)
    same = next((v for v in known if v.options == options), Variant("as locked", options))
    return reopened(subject, same)
