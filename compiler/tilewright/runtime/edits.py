"""What users can do with the kernels of a model: change them, keep the change, take it back."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tilewright.errors import InputError, UnsupportedError
from tilewright.runtime.verdict import Verdict

if TYPE_CHECKING:
    from tilewright.runtime.plan import Plan
    from tilewright.runtime.revisions import Revisions
    from tilewright.schedule.texts import Request


@dataclass(frozen=True)
class Site:
    """Where a kernel runs: its place in a plan, and the source that was generated for it."""

    plan: weakref.ref[Plan]
    number: int
    revisions: Revisions
    generated: str

    def located(self) -> tuple[Revisions, Plan, int]:
        """InputError if the plan has been dropped."""
        plan = self.plan()
        if plan is None:
            raise InputError(
                "the plan of this kernel was dropped: take the kernel from `model.kernels` again"
            )
        return self.revisions, plan, self.number


class Editable:
    """A kernel that may be changed where it runs. Its fields say what runs now."""

    site: Site | None = None
    source: str

    def edit(self, source: str, feeds: Mapping[str, Any] | None = None) -> Verdict:
        """This source runs from now on, wherever the model has this kernel, if it is right.

        It is compiled, compared in a child process with the kernel's loops and with the generated
        kernel, on random data and on what a run of the model on `feeds` (by default: on random
        inputs) gives it, and timed beside what ran before.

        Raises CompileError (with the line) if it does not compile, and EditRefused with the first
        element that differs if it is wrong; then nothing has changed.
        """
        revisions, plan, k = self._located()
        return revisions.edit(plan, k, source, feeds)

    def reschedule(self, schedule: Request, feeds: Mapping[str, Any] | None = None) -> Verdict:
        """The same for a schedule: directives, as objects or as text such as
        `Block('row0', 14, overlap=True)`, applied to the kernel's loops as they were lowered.

        Raises ScheduleError, which says why, for one that is not legal.
        """
        revisions, plan, k = self._located()
        return revisions.reschedule(plan, k, schedule, feeds)

    def pin(self, every_shape: bool = False) -> None:
        """The change is kept for later sessions, beside the kernel cache.

        An edit is for this source with the same numbers lifted out of it; with `every_shape` it
        serves other numbers too, once it was found to be right for them. A schedule is for loops
        of this structure. After an upgrade a pin is checked anew before it is used.
        """
        revisions, plan, k = self._located()
        made = plan.made[k]
        if made.text == made.usual[1].text and made.kernel is made.usual[0]:
            raise InputError("this kernel is as generated: there is nothing to pin")
        if not revisions.pin(plan, k, every_shape):
            raise InputError("the folder of the kernel cache cannot be written: nothing is pinned")

    def reset(self) -> None:
        """The generated kernel runs again, and pins of it are gone."""
        revisions, plan, k = self._located()
        revisions.reset(plan, k)

    @property
    def generated(self) -> str:
        """The source as it was generated, whatever runs."""
        return self.site.generated if self.site else self.source

    def become(self, other: Editable) -> None:
        """Everything that this says is what the other says, from one moment to the next."""
        object.__setattr__(self, "__dict__", dict(other.__dict__))

    def _located(self) -> tuple[Revisions, Plan, int]:
        if self.site is None:
            raise UnsupportedError("only kernels for the CPU can be changed, not those on a GPU")
        return self.site.located()
