"""Source in colours: by pygments where it is installed, as it is otherwise."""

from __future__ import annotations

from html import escape
from typing import Any

PYTHON, LLVM, GAS, PTX, SASS, LOOPS = "python", "llvm", "gas", "ptx", "sass", "loops"
LEXERS = {
    PYTHON: "PythonLexer",
    LLVM: "LlvmLexer",
    GAS: "GasLexer",
    PTX: "PtxLexer",
    LOOPS: "PythonLexer",
}
RICH = {PYTHON: "python", LLVM: "llvm", GAS: "gas", PTX: "ptx", LOOPS: "python"}
STYLE = """\
.tw .k,.tw .kd,.tw .kn,.tw .kr,.tw .ow{color:var(--tw-kw)}
.tw .kt,.tw .nf,.tw .fm,.tw .nb{color:var(--tw-fun)}
.tw .s,.tw .s1,.tw .s2,.tw .sd{color:var(--tw-str)}
.tw .c,.tw .c1,.tw .cm,.tw .ch{color:var(--tw-com)}
.tw .m,.tw .mi,.tw .mf,.tw .mh,.tw .nv,.tw .nl{color:var(--tw-num)}
"""


def highlighted(text: str, language: str) -> list[str]:
    """The lines of a source as HTML, each complete in itself."""
    lexer = _lexer(language)
    if lexer is None:
        return [escape(line) for line in text.splitlines()]
    from pygments.token import STANDARD_TYPES

    lines = [""]
    for kind, value in lexer.get_tokens(text):
        while kind not in STANDARD_TYPES:
            kind = kind.parent
        name = STANDARD_TYPES[kind]
        for k, piece in enumerate(value.split("\n")):
            if k:
                lines.append("")
            if piece:
                shown = escape(piece)
                lines[-1] += f'<span class="{name}">{shown}</span>' if name in SHOWN else shown
    while lines and not lines[-1]:
        lines.pop()
    return lines


SHOWN = frozenset("k kd kn kr ow kt nf fm nb s s1 s2 sd c c1 cm ch m mi mf mh nv nl".split())


def _lexer(language: str) -> Any:
    """None if pygments is not there, or does not know the language."""
    try:
        from pygments import lexers
    except ImportError:
        return None
    lexer = getattr(lexers, LEXERS.get(language, ""), None)
    return lexer(stripnl=False) if lexer is not None else None
