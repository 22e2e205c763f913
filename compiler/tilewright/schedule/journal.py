"""What a heuristic tried on a kernel, and why: kept only for somebody who asks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Attempt:
    """A directive that was tried, and why it was refused; or a remark without a directive."""

    directive: str
    refused: str = ""
    remark: str = ""

    def __str__(self) -> str:
        if self.remark:
            return self.remark
        return f"{self.directive} refused: {self.refused}" if self.refused else self.directive


class Journal:
    """Takes down attempts in order."""

    def __init__(self) -> None:
        self.attempts: list[Attempt] = []

    def tried(self, directive: object, error: Exception | None = None) -> None:
        """A directive, with the error that refused it."""
        text = str(directive)
        why = str(error).removeprefix(f"{text}: ") if error else ""
        self.attempts.append(Attempt(text, why))

    def remark(self, text: str) -> None:
        """Why the heuristic goes this way."""
        self.attempts.append(Attempt("", remark=text))
