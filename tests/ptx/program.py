"""A kernel with the functions that it calls put in place: one list of instructions.

A call becomes the callee's instructions under names of their own, with its parameters named as the
caller names them; its `ret` jumps to what follows.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import count

from ptx.errors import SyntaxFault, Unsupported
from ptx.parser import Parsed, parse, size_of
from ptx.syntax import (
    Address,
    Function,
    Guard,
    Instruction,
    Integer,
    Label,
    Negation,
    Operand,
    Register,
    Several,
    Symbol,
    Variable,
)

DEEPEST = 16


@dataclass
class Program:
    """What runs: `labels` are indices of instructions."""

    name: str
    parameters: tuple[Variable, ...]
    most_threads: int
    target: str
    module_variables: dict[str, Variable]
    instructions: list[Instruction] = field(default_factory=list)
    registers: dict[str, str] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    tables: dict[str, tuple[str, ...]] = field(default_factory=dict)


class Module:
    """A parsed text."""

    def __init__(self, text: str) -> None:
        self.parsed: Parsed = parse(text)

    def kernel(self, name: str | None = None) -> Program:
        """The kernel of this name, or the only one."""
        kernels = [f for f in self.parsed.functions.values() if f.is_kernel]
        chosen = [f for f in kernels if name in (None, f.name)]
        if len(chosen) != 1:
            raise SyntaxFault(f"{len(chosen)} kernels {name or ''} of {[f.name for f in kernels]}")
        return Linker(self.parsed, chosen[0]).program


class Linker:
    def __init__(self, parsed: Parsed, kernel: Function) -> None:
        self.parsed = parsed
        self.fresh = count()
        self.program = Program(
            kernel.name, kernel.parameters, kernel.most_threads, parsed.target, parsed.variables
        )
        self.place(kernel, "", {}, None, 0)

    def place(
        self, function: Function, prefix: str, formal: dict[str, str], end: str | None, depth: int
    ) -> None:
        """Append the function; `end` is where it returns to, None for the kernel itself."""
        if depth > DEEPEST:
            raise Unsupported(f"recursion in {function.name}")
        names = Renaming(function, prefix, formal)
        program = self.program
        program.registers.update({prefix + n: k for n, k in function.registers.items()})
        for variable in function.variables.values():
            name = prefix + variable.name
            program.variables[name] = replace(variable, name=name)
        for label, targets in function.tables.items():
            program.tables[prefix + label] = tuple(prefix + t for t in targets)
        for item in function.body:
            if isinstance(item, Label):
                program.labels[prefix + item.name] = len(program.instructions)
            else:
                self.append(names.instruction(item), end, depth)

    def append(self, instruction: Instruction, end: str | None, depth: int) -> None:
        if instruction.name == "call":
            self.call(instruction, depth)
        elif instruction.name == "ret" and end is not None:
            self.branch(instruction, end, instruction.guard)
        else:
            self.program.instructions.append(instruction)

    def branch(self, instruction: Instruction, label: str, guard: Guard | None) -> None:
        jump = replace(instruction, name="bra", modifiers=(), operands=(Symbol(label),))
        self.program.instructions.append(replace(jump, guard=guard))

    def call(self, instruction: Instruction, depth: int) -> None:
        results, callee, arguments = split_call(instruction)
        if callee not in self.parsed.functions:
            raise Unsupported(f"{instruction}: {callee} has no body here")
        function = self.parsed.functions[callee]
        prefix = f"{callee}#{next(self.fresh)}/"
        end = prefix + "end"
        formal = dict(zip([v.name for v in function.results], results, strict=True))
        formal |= dict(zip([v.name for v in function.parameters], arguments, strict=True))
        if instruction.guard:
            inverse = replace(instruction.guard, wanted=not instruction.guard.wanted)
            self.branch(instruction, end, inverse)
        self.place(function, prefix, formal, end, depth + 1)
        self.program.labels[end] = len(self.program.instructions)


def split_call(instruction: Instruction) -> tuple[list[str], str, list[str]]:
    """Names of results, callee and arguments of `call (r), f, (a, b)`."""
    lists: list[list[str]] = []
    callee = ""
    for operand in instruction.operands:
        if isinstance(operand, Symbol):
            callee = operand.name
            lists = lists or [[]]
        elif isinstance(operand, Several):
            if not all(isinstance(item, Symbol) for item in operand.items):
                raise Unsupported(f"{instruction}: a call with registers")
            lists.append([item.name for item in operand.items if isinstance(item, Symbol)])
    results, arguments = [*lists, []][:2]
    return results, callee, arguments


@dataclass(frozen=True)
class Renaming:
    """A function's names as its copy has them."""

    function: Function
    prefix: str
    formal: dict[str, str]

    def instruction(self, instruction: Instruction) -> Instruction:
        guard = instruction.guard
        if guard:
            guard = replace(guard, predicate=self.register(guard.predicate))
        operands = tuple(self.operand(o) for o in instruction.operands)
        return replace(instruction, operands=operands, guard=guard)

    def register(self, register: Register) -> Register:
        return Register(self.prefix + register.name)

    def symbol(self, symbol: Symbol) -> Symbol:
        name = symbol.name
        if name in self.formal:
            return Symbol(self.formal[name])
        is_own = name in self.function.variables or name in self.function.tables
        return Symbol(self.prefix + name) if is_own or name in self.labels else symbol

    @property
    def labels(self) -> set[str]:
        return {item.name for item in self.function.body if isinstance(item, Label)}

    def operand(self, operand: Operand) -> Operand:
        match operand:
            case Register():
                return self.register(operand)
            case Symbol():
                return self.symbol(operand)
            case Address(base, offset, box):
                renamed = self.operand(base)
                assert isinstance(renamed, (Register, Symbol, Integer))
                at = None if box is None else Several(tuple(map(self.operand, box.items)))
                return Address(renamed, offset, at)
            case Negation(predicate):
                return Negation(self.register(predicate))
            case Several(items):
                return Several(tuple(self.operand(item) for item in items))
            case _:
                return operand


__all__ = ["Module", "Program", "size_of"]
