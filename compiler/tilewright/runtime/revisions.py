"""Kernels that users have changed: in a running model, in a folder, or in an earlier session.

One `Revisions` belongs to one model. It says of every kernel that a plan is about to run whether
something else runs in its place, checks what is new, and changes the plans that live.
"""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.codegen.emit import Emitted, emit
from tilewright.errors import CompileError, EditRefused, InputError, ScheduleError
from tilewright.loops.ir import Kernel
from tilewright.loops.sample import summed_terms
from tilewright.options import Options
from tilewright.runtime.cache import KernelCache
from tilewright.runtime.capture import given_arrays, good_capture, loose_parameters, timed
from tilewright.runtime.check_kernel import Difference, Finding, Question, answer
from tilewright.runtime.dump import short_digest
from tilewright.runtime.overrides import Override, read_overrides
from tilewright.runtime.pinned import SCHEDULE, SOURCE, Facts, Pin, Pins, structure_key
from tilewright.runtime.trial import Arrays, Code
from tilewright.runtime.verdict import TOLERANCE, Times, Verdict
from tilewright.schedule.directives import Directive, schedule

if TYPE_CHECKING:
    from tilewright.runtime.plan import Plan
    from tilewright.schedule.texts import Request

GENERATED = "generated"
EDITED, RESCHEDULED = "edited", "rescheduled"
PINNED = {SOURCE: "pinned edit", SCHEDULE: "pinned schedule"}
REFUSED = "a generated kernel did not compile: "
COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # that Numba gives to its errors
LINE = re.compile(r"line (\d+)")
UNKNOWN_NAME = re.compile(r"name '(\w+)' is not defined")

SourceKey = tuple[str, tuple[int, ...]]


@dataclass(frozen=True)
class Made:
    """A kernel as a plan runs it. `meaning` is the loop nest before any schedule; `usual` is what
    the heuristics make of it, `kernel` what is scheduled now and `emitted` what was generated for
    that; `text` is what runs."""

    meaning: Kernel
    usual: tuple[Kernel, Emitted]
    kernel: Kernel
    emitted: Emitted
    text: str
    origin: str = GENERATED

    @property
    def source_key(self) -> SourceKey:
        """What an edit is for."""
        return self.emitted.text, self.emitted.numbers

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal where the same runs, by the same right."""
        return self.text, self.emitted.numbers, self.emitted.iterations, self.origin


def as_generated(meaning: Kernel, kernel: Kernel, emitted: Emitted) -> Made:
    """A kernel that nobody has changed."""
    return Made(meaning, (kernel, emitted), kernel, emitted, emitted.text)


@dataclass(frozen=True)
class _Sources:
    """Another text for a kernel, and who says so."""

    text: str
    origin: str


@dataclass(frozen=True)
class _Schedule:
    directives: tuple[Directive, ...]
    origin: str


class Revisions:
    """What users have changed in the kernels of one model. Safe to use from several threads."""

    def __init__(self, options: Options, cache: KernelCache) -> None:
        self._cache = cache
        self._pins, self._facts = Pins(cache.store.folder), Facts(cache.store)
        self._overrides = read_overrides(options.override)
        self._sources: dict[SourceKey, _Sources] = {}
        self._schedules: dict[str, _Schedule] = {}
        self._stale: dict[str, str] = {}  # by the name of a pin: why it is not applied
        self._plans: weakref.WeakSet[Plan] = weakref.WeakSet()
        self._call: Callable[[], Callable[[Mapping[str, Any]], object] | None] = lambda: None
        self.lock = threading.RLock()

    def serve(self, run: Callable[[Mapping[str, Any]], object]) -> None:
        """`run`, a method of the model, is how it is called; it is not kept alive."""
        self._call = weakref.WeakMethod(run)

    # -- what runs

    def all_made(self, found: Sequence[Made]) -> list[Made]:
        """What a plan runs for these kernels as they were generated.

        EditRefused for a wrong file of the folder of overriding kernels, CompileError or
        ScheduleError for one that is no kernel or no schedule.
        """
        with self.lock:
            if not (self._sources or self._schedules or self._overrides or len(self._pins)):
                return list(found)
            return [self._made(m) for m in found]

    def add(self, plan: Plan) -> None:
        """The plan changes with the others from now on."""
        with self.lock:
            self._plans.add(plan)
            self._refresh(plan)  # for what has changed since it was begun

    def notes(self) -> tuple[str, ...]:
        """Pins that are not applied, and why."""
        return tuple(self._stale.values())

    def _made(self, m: Made) -> Made:
        return self._with_source(self._with_schedule(as_generated(m.meaning, *m.usual)))

    def _with_schedule(self, m: Made) -> Made:
        override = self._overrides.get(short_digest(m.emitted.text))
        structure = structure_key(m.meaning)
        live = self._schedules.get(structure)
        if live is not None:
            return _scheduled(m, live.directives, live.origin)
        if override is not None and override.schedule is not None:
            return self._overridden(m, override)
        for pin in self._pins:
            if pin.kind == SCHEDULE and pin.structure == structure:
                return self._pinned(m, pin, structure)
        return m

    def _with_source(self, m: Made) -> Made:
        live = self._sources.get(m.source_key)
        if live is not None:
            return _edited(m, live.text, live.origin)
        override = self._overrides.get(short_digest(m.emitted.text))
        if override is not None and override.source is not None and m.kernel is m.usual[0]:
            return self._overridden(m, override)
        pin = self._pin_of_source(m)
        return m if pin is None else self._pinned(m, pin, structure_key(m.meaning))

    def _pin_of_source(self, m: Made) -> Pin | None:
        found = [p for p in self._pins if p.kind == SOURCE]
        if not found:
            return None
        structure = structure_key(m.meaning)
        exact = [p for p in found if (p.text, p.numbers) == m.source_key and not p.every_shape]
        general = [p for p in found if p.text == m.emitted.text and p.every_shape]
        for p in found:
            is_usual = m.kernel is m.usual[0]
            if is_usual and p.structure == structure and p.text != m.emitted.text:
                self._stale[p.name] = (
                    f"pin {p.name} of {p.kernel} is stale: another source is generated by now"
                )
        return next(iter(exact + general), None)

    def _overridden(self, m: Made, override: Override) -> Made:
        """The kernel as a file says; raises if that is wrong."""
        origin = f"overridden by {override.path.name}"
        try:
            if override.source is not None:
                made = _edited(m, override.source, origin)
            else:
                made = _scheduled(m, _read(override.schedule or ""), origin)
            self._admit(made)
        except EditRefused as error:
            raise _with_place(override.refused(error), error) from None
        except (CompileError, ScheduleError) as error:
            raise type(error)(f"{override.path}: {error}") from None
        return made

    def _pinned(self, m: Made, pin: Pin, structure: str) -> Made:
        """The kernel as a pin says, if that is right today."""
        try:
            if pin.kind == SOURCE:
                made = _edited(m, pin.change, PINNED[SOURCE])
            else:
                made = _scheduled(m, _read(pin.change), PINNED[SCHEDULE])
            self._admit(made)
        except (EditRefused, CompileError, ScheduleError) as error:
            reason = str(error).partition("\n")[0]
            self._stale[pin.name] = f"pin {pin.name} of {pin.kernel} is stale: {reason}"
            return m
        self._stale.pop(pin.name, None)
        return made

    def _admit(self, made: Made) -> None:
        """Raises unless it is known, or found out now, that this computes what is generated."""
        structure = structure_key(made.meaning)
        if not self._facts.holds(structure, made.usual[1], _fact_text(made)):
            finding = answer(self._question(made, None, frozenset()))
            if finding.difference is not None:
                raise _refusal("the kernel", finding.difference, made, None)
            self._facts.add(structure, made.usual[1], _fact_text(made))

    # -- changes

    def edit(self, plan: Plan, k: int, source: str, feeds: Mapping[str, Any] | None) -> Verdict:
        """Puts a source in the place of a kernel's, wherever the model has that kernel."""
        given = self._given(plan, feeds)
        with self.lock:
            made = plan.made[k]
            changed = _edited(made, source, _origin(made, EDITED))

            def keep() -> None:
                self._sources[made.source_key] = _Sources(source, changed.origin)

            return self._change(plan, k, changed, EDITED, given, keep)

    def reschedule(
        self, plan: Plan, k: int, request: Request, feeds: Mapping[str, Any] | None
    ) -> Verdict:
        """Puts a schedule in the place of a kernel's; a source that was edited goes."""
        given = self._given(plan, feeds)
        with self.lock:
            made = plan.made[k]
            directives = _read(request)
            changed = _scheduled(as_generated(made.meaning, *made.usual), directives, RESCHEDULED)

            def keep() -> None:
                self._sources.pop(changed.source_key, None)
                key = structure_key(made.meaning)
                self._schedules[key] = _Schedule(directives, RESCHEDULED)

            return self._change(plan, k, changed, RESCHEDULED, given, keep)

    def pin(self, plan: Plan, k: int, every_shape: bool) -> bool:
        """Keeps what was changed of a kernel; False if there is nowhere to keep it."""
        with self.lock:
            made, kernel = plan.made[k], plan.kernels[k]
            key, steps = structure_key(made.meaning), ", ".join(map(str, made.kernel.schedule))
            base = Pin(
                SCHEDULE, steps, key, *made.source_key, kernel=kernel.name, graph=kernel.graph
            )
            kept = True
            if made.kernel is not made.usual[0]:
                kept &= self._pins.add(base)
            if made.text != made.emitted.text:
                kept &= self._pins.add(
                    replace(base, kind=SOURCE, change=made.text, every_shape=every_shape)
                )
            self._mark(made)
            self._refresh_all()
            return kept

    def _mark(self, made: Made) -> None:
        """Live changes of this kernel are pinned ones from now on."""
        key = structure_key(made.meaning)
        if key in self._schedules:
            self._schedules[key] = replace(self._schedules[key], origin=PINNED[SCHEDULE])
        if made.source_key in self._sources:
            old = self._sources[made.source_key]
            self._sources[made.source_key] = replace(old, origin=PINNED[SOURCE])

    def reset(self, plan: Plan, k: int) -> None:
        """Takes back what was changed of a kernel, here and on disk; files stay as they are, but
        are not used any more."""
        with self.lock:
            made = plan.made[k]
            structure = structure_key(made.meaning)
            keys = {made.source_key, (made.usual[1].text, made.usual[1].numbers)}
            self._schedules.pop(structure, None)
            for key in keys:
                self._sources.pop(key, None)
                self._overrides.pop(short_digest(key[0]), None)
            self._pins.remove([p for p in self._pins if _is_of(p, structure, keys)])
            self._refresh_all()

    def _change(
        self,
        plan: Plan,
        k: int,
        changed: Made,
        how: str,
        given: Sequence[np.ndarray] | None,
        keep: Callable[[], None],
    ) -> Verdict:
        name, kernel = plan.kernels[k].name, changed.meaning
        new = self._code(changed)
        data = good_capture(plan, k, kernel, given)
        question = self._question(changed, data, loose_parameters(plan, k, kernel))
        finding = answer(question)
        if finding.difference is not None:
            raise _refusal(name, finding.difference, changed, plan.kernels[k])
        times = self._times(plan, k, changed, new, data)
        self._facts.add(structure_key(kernel), changed.usual[1], _fact_text(changed))
        keep()
        places = self._refresh_all()
        terms = TOLERANCE.format(terms=summed_terms(kernel))
        return Verdict(name, how, *times, finding.error, terms, _checked(finding, data), places)

    def _given(self, plan: Plan, feeds: Mapping[str, Any] | None) -> Sequence[np.ndarray] | None:
        """What the plan reads when the model runs on these feeds. Not to be called with the lock:
        plans may be made meanwhile, which takes other locks first."""
        if feeds is None:
            return None
        run = self._call()
        if run is None:
            raise InputError("the model of this kernel is gone: feeds lead nowhere")
        return given_arrays(plan, run, feeds, self.lock)

    def _times(
        self, plan: Plan, k: int, changed: Made, new: Code, data: Arrays | None
    ) -> tuple[Times, Times]:
        before = plan.made[k]
        step = plan.table.steps[k]
        cut = plan.cut(changed.kernel, changed.emitted)
        if data is None:
            return Times(0.0, 0.0), Times(0.0, 0.0)
        codes = [(self._code(before), step.tasks, step.chunk), (new, *cut)]
        old, now = timed(plan, changed.meaning, codes, data)
        return old, now

    # -- parts

    def _question(self, made: Made, data: Arrays | None, loose: frozenset[str]) -> Question:
        old = as_generated(made.meaning, *made.usual)
        return Question(made.meaning, self._code(old), self._code(made), data, loose)

    def _code(self, made: Made) -> Code:
        """A kernel, compiled. CompileError begins with the line, if it is a user's."""
        e = made.emitted
        try:
            (address,) = self._cache.load([made.text])
        except CompileError as error:
            if made.text == e.text:
                raise
            raise CompileError(_located(str(error), made.text)) from None
        return Code(address, e.numbers, e.iterations, bool(e.checks))

    def _refresh_all(self) -> int:
        return sum(self._refresh(plan) for plan in list(self._plans))

    def _refresh(self, plan: Plan) -> int:
        """The plan runs what is in force now; how many of its kernels changed."""
        made = self.all_made(plan.made) if self._any else [_plain(m) for m in plan.made]
        pairs = enumerate(zip(made, plan.made, strict=True))
        changes = {k: m for k, (m, was) in pairs if m.identity != was.identity}
        if changes:
            plan.change(changes, {k: self._code(m).address for k, m in changes.items()})
        return len(changes)

    @property
    def _any(self) -> bool:
        return bool(self._sources or self._schedules or self._overrides or len(self._pins))


def _plain(m: Made) -> Made:
    return as_generated(m.meaning, *m.usual)


def _edited(m: Made, text: str, origin: str) -> Made:
    return replace(m, text=text, origin=origin)


def _read(request: Request) -> tuple[Directive, ...]:
    # The table of directives knows all of both targets: imported when somebody changes a schedule.
    from tilewright.schedule.texts import read_schedule

    return read_schedule(request)


def _scheduled(m: Made, directives: tuple[Directive, ...], origin: str) -> Made:
    """The kernel with another schedule, from the loop nest as it was before any."""
    from tilewright.schedule.texts import check_for_cpu

    check_for_cpu(directives)
    kernel = schedule(m.meaning, directives)
    emitted = emit(kernel)
    return replace(m, kernel=kernel, emitted=emitted, text=emitted.text, origin=origin)


def _origin(made: Made, how: str) -> str:
    """Also says that the schedule is not the usual one."""
    return how if made.kernel is made.usual[0] else f"{RESCHEDULED} and {how}"


def _fact_text(made: Made) -> str:
    """All that decides about what runs, beside what is generated."""
    numbers = "" if made.emitted is made.usual[1] else f"# {made.emitted.numbers}\n"
    return numbers + made.text


def _is_of(p: Pin, structure: str, keys: set[SourceKey]) -> bool:
    if p.kind == SCHEDULE:
        return p.structure == structure
    return (p.text, p.numbers) in keys or (p.every_shape and p.text in {t for t, _ in keys})


def _checked(finding: Finding, data: Arrays | None) -> tuple[str, ...]:
    if data is not None:
        return finding.checked
    return (*finding.checked, "no data of the model: what is before it finds all of it bad")


def _refusal(name: str, found: Difference, made: Made, described: Any) -> EditRefused:
    label = _labels(made.meaning, described).get(found.buffer, "") if described else ""
    known = f" ({found.buffer} is {label})" if label else ""
    error = EditRefused(f"{name} would be wrong: {found}{known}")
    error.buffer, error.index = found.buffer, found.index
    error.wanted, error.got = found.wanted, found.got
    return error


def _with_place(new: EditRefused, old: EditRefused) -> EditRefused:
    new.buffer, new.index, new.wanted, new.got = old.buffer, old.index, old.wanted, old.got
    return new


def _labels(kernel: Kernel, described: Any) -> dict[str, str]:
    """What the model calls the kernel's parameters."""
    reads, writes = iter(described.reads), iter(described.writes)
    return {b.name: next(writes if b.name in kernel.outputs else reads) for b in kernel.params}


def _located(message: str, text: str) -> str:
    """The message with the line of the source that it is about in front, if that can be seen."""
    plain = COLOURS.sub("", message.partition("\n\n" + text)[0])
    reason = plain.removeprefix(REFUSED)
    found, unknown = LINE.search(reason), UNKNOWN_NAME.search(reason)
    number = int(found[1]) if found else 0
    if not number and unknown:
        lines = text.splitlines()
        number = next((k for k, line in enumerate(lines, 1) if unknown[1] in line), 0)
    place = f"line {number}: " if number else ""
    return f"{place}the changed kernel does not compile: {reason}"
