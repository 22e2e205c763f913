"""PTX as data: operands, instructions, functions and variables."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Register:
    name: str


@dataclass(frozen=True)
class Integer:
    value: int


@dataclass(frozen=True)
class Real:
    """A constant of 32 or 64 bits, or a decimal one that takes the instruction's type."""

    bits: int
    width: int


@dataclass(frozen=True)
class Symbol:
    """A variable, a function, a label or a special register."""

    name: str


@dataclass(frozen=True)
class Address:
    base: Register | Symbol | Integer
    offset: int
    box: Several | None = None  # coordinates in the tensor that is described there


@dataclass(frozen=True)
class Negation:
    """`!p` of a predicate."""

    predicate: Register


@dataclass(frozen=True)
class Several:
    """`{a, b}`, `(a, b)` or `p|q`."""

    items: tuple[Operand, ...]


Operand = Register | Integer | Real | Symbol | Address | Negation | Several


@dataclass(frozen=True)
class Guard:
    """`@p` or `@!p`."""

    predicate: Register
    wanted: bool


@dataclass(frozen=True)
class Instruction:
    name: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: Guard | None
    line: int
    text: str
    used_bytes: int | None = None  # of a load, as bits, where not all of what it reads matters

    @property
    def type(self) -> str:
        """The last modifier, most often the type of the operands."""
        return self.modifiers[-1] if self.modifiers else ""

    def has(self, modifier: str) -> bool:
        return modifier in self.modifiers

    def __str__(self) -> str:
        return f"line {self.line} `{self.text}`"


@dataclass(frozen=True)
class Label:
    name: str


@dataclass(frozen=True)
class Variable:
    """A variable in memory; `data` are its bytes where the text gives them."""

    name: str
    space: str
    type: str
    align: int
    size: int
    external: bool = False
    data: bytes | None = None


@dataclass
class Function:
    """A function; registers are by name, and names of inner scopes are made unique."""

    name: str
    is_kernel: bool
    results: tuple[Variable, ...] = ()
    parameters: tuple[Variable, ...] = ()
    most_threads: int = 1024
    registers: dict[str, str] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    tables: dict[str, tuple[str, ...]] = field(default_factory=dict)
    body: list[Instruction | Label] = field(default_factory=list)
