"""From the text of a module to its functions and variables."""

from __future__ import annotations

import re
import struct
from bisect import bisect
from dataclasses import dataclass, replace
from itertools import count

from ptx.errors import SyntaxFault
from ptx.syntax import (
    Address,
    Function,
    Guard,
    Instruction,
    Integer,
    Label,
    Negation,
    Operand,
    Real,
    Register,
    Several,
    Symbol,
    Variable,
)

COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
TOKEN = re.compile(r'"[^"]*"|[%$.\w]+(?:::[.\w]+)*|[{}\[\]()<>,;:@!+\-|=]')
NUMBER = re.compile(r"0[xX][0-9a-fA-F]+U?|\d+U?")
DECIMAL = re.compile(r"\d+\.\d*(?:[eE]\d+)?")
SPACES = ("shared", "global", "const", "local", "param")
BYTES = {"pred": 1, "bf16": 2, "f16x2": 4, "bf16x2": 4, "tf32": 4}
LINKAGE = (".visible", ".extern", ".weak", ".common")


def size_of(kind: str) -> int:
    """Bytes of a type such as u32."""
    return BYTES[kind] if kind in BYTES else int(kind[1:]) // 8


@dataclass(frozen=True)
class Parsed:
    """A module's target, such as sm_80, its functions and its variables."""

    target: str
    functions: dict[str, Function]
    variables: dict[str, Variable]


def parse(text: str) -> Parsed:
    return Parser(text).module()


class Parser:
    def __init__(self, text: str) -> None:
        bare = COMMENT.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), text)
        found = list(TOKEN.finditer(bare))
        self.tokens = [m[0] for m in found]
        self.starts = [m.start() for m in found]
        self.newlines = [k for k, letter in enumerate(bare) if letter == "\n"]
        self.text = bare
        self.at = 0
        self.target = ""
        self.functions: dict[str, Function] = {}
        self.variables: dict[str, Variable] = {}
        self.scopes: list[dict[str, Register | Symbol]] = []
        self.fresh = count()
        self.used_bytes: int | None = None

    # Tokens.

    def peek(self, ahead: int = 0) -> str:
        at = self.at + ahead
        return self.tokens[at] if at < len(self.tokens) else ""

    def next(self) -> str:
        token = self.peek()
        self.at += 1
        return token

    def accept(self, token: str) -> bool:
        if self.peek() != token:
            return False
        self.at += 1
        return True

    def expect(self, token: str) -> None:
        if not self.accept(token):
            raise SyntaxFault(f"line {self.line()}: {self.peek()!r} where {token!r} is expected")

    def line(self) -> int:
        at = min(self.at, len(self.starts) - 1)
        return bisect(self.newlines, self.starts[at]) + 1

    # The module.

    def module(self) -> Parsed:
        while self.peek():
            self.top()
        return Parsed(self.target, self.functions, self.variables)

    def top(self) -> None:
        external = False
        while self.peek() in LINKAGE:
            external |= self.next() == ".extern"
        word = self.next()
        if word in (".version", ".address_size"):
            self.next()
        elif word == ".target":
            self.target = self.next()
            while self.accept(","):
                self.next()
        elif word in (".entry", ".func"):
            self.function(word == ".entry")
        elif word[1:] in SPACES:
            variable = self.variable(word[1:], external)
            self.variables[variable.name] = variable
            self.expect(";")
        else:
            raise SyntaxFault(f"line {self.line()}: {word!r} at the top of a module")

    def function(self, is_kernel: bool) -> None:
        results = self.parameters() if self.peek() == "(" else ()
        function = Function(self.next(), is_kernel, results)
        function.parameters = self.parameters() if self.peek() == "(" else ()
        while self.peek() not in ("{", ";"):
            self.performance(function)
        if not self.accept(";"):
            self.body(function)
            self.functions[function.name] = function

    def performance(self, function: Function) -> None:
        """A directive between the head and the body."""
        word = self.next()
        numbers = []
        while NUMBER.fullmatch(self.peek()) or self.peek()[:1] == '"' or self.peek() == ",":
            numbers.append(self.next())
        if word in (".maxntid", ".reqntid"):
            product = 1
            for number in numbers:
                product *= int(number) if number != "," else 1
            function.most_threads = product

    def parameters(self) -> tuple[Variable, ...]:
        self.expect("(")
        found = []
        while not self.accept(")"):
            self.expect(".param")
            found.append(self.variable("param", False))
            self.accept(",")
        return tuple(found)

    def variable(self, space: str, external: bool) -> Variable:
        """What follows the name of the space."""
        align, kind = 0, ""
        while self.peek()[:1] == ".":
            word = self.next()
            if word == ".align":
                align = int(self.next())
            elif word not in (".ptr", ".global", ".shared"):
                kind = word[1:]
        name, size = self.next(), size_of(kind)
        elements = 1
        while self.accept("["):
            elements *= int(self.next()) if self.peek() != "]" else 0
            self.expect("]")
        data = self.initial(size, elements * size) if self.accept("=") else None
        return Variable(name, space, kind, align or size, elements * size, external, data)

    def initial(self, size: int, total: int) -> bytes:
        """A list of numbers as bytes, zeros after its end."""
        items = [self.operand()]
        while isinstance(items[0], Several):
            items = list(items[0].items)
        data = b""
        for item in items:
            assert isinstance(item, (Integer, Real))
            bits = item.value if isinstance(item, Integer) else item.bits
            data += (bits % (1 << 8 * size)).to_bytes(size, "little")
        return data.ljust(total, b"\0")

    # Bodies.

    def body(self, function: Function) -> None:
        self.expect("{")
        self.scopes = [{}]
        while self.scopes:
            if self.accept("{"):
                self.scopes.append({})
            elif self.accept("}"):
                self.scopes.pop()
            else:
                self.statement(function)

    def statement(self, function: Function) -> None:
        if self.peek(1) == ":":
            label = self.next()
            self.next()
            if self.accept(".branchtargets"):
                function.tables[label] = self.names()
                return
            function.body.append(Label(label))
        elif self.peek() == ".reg":
            self.registers(function)
        elif self.peek()[1:] in SPACES and self.peek()[0] == ".":
            self.inner_variable(function)
        elif self.accept(".pragma"):
            self.pragma(self.next().strip('"'))
            self.expect(";")
        elif not self.accept(";"):
            function.body.append(self.instruction())

    def pragma(self, text: str) -> None:
        """Which bytes the next load needs; other pragmas only help optimisers."""
        name, _, value = text.partition(" ")
        if name == "used_bytes_mask":
            self.used_bytes = int(value, 0)

    def names(self) -> tuple[str, ...]:
        found = [self.next()]
        while self.accept(","):
            found.append(self.next())
        self.expect(";")
        return tuple(found)

    def unique(self, name: str) -> str:
        """A name for what this scope declares; a function's outermost names stay as they are."""
        return name if len(self.scopes) == 1 else f"{name}#{next(self.fresh)}"

    def resolved(self, name: str) -> Register | Symbol:
        """What the innermost scope that declares the name means by it."""
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        return Symbol(name)

    def registers(self, function: Function) -> None:
        self.next()
        kind = self.next()[1:]
        while True:
            name = self.next()
            if self.accept("<"):
                names = [f"{name}{k}" for k in range(int(self.next()))]
                self.expect(">")
            else:
                names = [name]
            for each in names:
                register = Register(self.unique(each))
                self.scopes[-1][each] = register
                function.registers[register.name] = kind
            if not self.accept(","):
                break
        self.expect(";")

    def inner_variable(self, function: Function) -> None:
        variable = self.variable(self.next()[1:], False)
        fresh = replace(variable, name=self.unique(variable.name))
        self.scopes[-1][variable.name] = Symbol(fresh.name)
        function.variables[fresh.name] = fresh
        self.expect(";")

    def instruction(self) -> Instruction:
        line, start = self.line(), self.starts[self.at]
        guard = None
        if self.accept("@"):
            wanted = not self.accept("!")
            guard = Guard(self.register(), wanted)
        name, *modifiers = self.next().split(".")
        operands = []
        while not self.accept(";"):
            operands.append(self.operand())
            self.accept(",")
        text = " ".join(self.text[start : self.starts[self.at - 1]].split())
        used, self.used_bytes = self.used_bytes, None
        return Instruction(name, tuple(modifiers), tuple(operands), guard, line, text, used)

    def register(self) -> Register:
        found = self.resolved(self.next())
        if not isinstance(found, Register):
            raise SyntaxFault(f"line {self.line()}: {found.name} is not declared")
        return found

    # Operands.

    def operand(self) -> Operand:
        if self.accept("["):
            return self.address()
        if self.accept("{"):
            return self.several("}")
        if self.accept("("):
            return self.several(")")
        if self.accept("!"):
            return Negation(self.register())
        item = self.simple()
        if self.accept("|"):
            return Several((item, self.simple()))
        return item

    def several(self, end: str) -> Several:
        items = []
        while not self.accept(end):
            items.append(self.operand())
            self.accept(",")
        return Several(tuple(items))

    def simple(self) -> Register | Integer | Real | Symbol:
        negative = self.accept("-")
        word = self.next()
        if word[:2] in ("0f", "0F") and len(word) == 10:
            return Real(int(word[2:], 16), 32)
        if word[:2] in ("0d", "0D") and len(word) == 18:
            return Real(int(word[2:], 16), 64)
        if NUMBER.fullmatch(word):
            value = int(word.rstrip("U"), 0)
            return Integer(-value if negative else value)
        if DECIMAL.fullmatch(word):
            value_bits = struct.pack("<d", float(word) * (-1 if negative else 1))
            return Real(int.from_bytes(value_bits, "little"), 64)
        return self.resolved(word)

    def address(self) -> Address:
        base = self.simple()
        offset = 0
        if self.accept("+"):
            sign = -1 if self.accept("-") else 1
            offset = sign * int(self.next().rstrip("U"), 0)
        box = self.operand() if self.accept(",") else None
        self.expect("]")
        if box is not None and not isinstance(box, Several):
            raise SyntaxFault(f"line {self.line()}: no coordinates")
        if isinstance(base, Real):
            raise SyntaxFault(f"line {self.line()}: a real number as an address")
        return Address(base, offset, box)
