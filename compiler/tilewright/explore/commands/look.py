"""`tilewright inspect`, `explain`, `profile` and `support`: what there is to know of a model."""

from __future__ import annotations

import argparse
import html
import json
from collections import Counter
from pathlib import Path
from typing import Any

import onnx

import tilewright
from tilewright.errors import InputError, ModelError
from tilewright.explore.commands.base import (
    RIGHT,
    WRONG,
    Command,
    add_inputs,
    add_json,
    add_model,
    file,
    is_quiet,
    open_model,
    seconds,
    wanted,
    write_json,
)
from tilewright.explore.compare import check_model
from tilewright.explore.feeds import feeds_of
from tilewright.explore.screen import Screen

PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<body>
{body}
</body>
</html>
"""
LEVELS = ("source", "loops", "schedule", "steps", "llvm", "assembly", "ptx", "sass")

# -- inspect


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_inputs(parser)
    add = parser.add_argument
    add("--kernels", action="store_true", help="compile, and list the kernels")
    add("--kernel", metavar="K3", help="compile, and show this kernel")
    add("--level", choices=LEVELS, default="source", help="of the kernel (source)")
    add("--html", type=file(".html"), metavar="FILE.html", help="the model, or kernel, as a page")
    add_json(parser)


def _run_inspect(arguments: argparse.Namespace, screen: Screen) -> int:
    model = open_model(arguments)
    compiled = arguments.kernels or arguments.kernel or arguments.html
    if compiled:
        model.warmup(feeds_of(model, wanted(arguments)))
    if arguments.kernel:
        return _show_kernel(model, arguments, screen)
    data = _facts(arguments.model, model)
    if compiled:
        data["kernels"] = [_kernel_row(k) for k in model.kernels]
    if not is_quiet(arguments):
        _show_facts(data, screen)
    if arguments.html:
        _write_page(model, arguments, screen)
    write_json(data, arguments.json)
    return RIGHT


def _facts(path: str, model: Any) -> dict[str, Any]:
    """What the file says, and what became of it on import."""
    try:
        proto = onnx.load(path, load_external_data=False)
    except Exception as error:  # the message is protobuf's own
        raise ModelError(f"{path} is not an ONNX model: {error}") from error
    weights = sum(_elements(t.dims) for t in proto.graph.initializer)
    return {
        "model": path,
        "producer": f"{proto.producer_name} {proto.producer_version}".strip(),
        "opsets": {o.domain or "ai.onnx": o.version for o in proto.opset_import},
        "inputs": [str(v) for v in model.inputs],
        "outputs": [str(v) for v in model.outputs],
        "weights": weights,
        "nodes": dict(Counter(n.op_type for n in proto.graph.node).most_common()),
        "rewrites": dict(Counter(rule for rule, _ in model.explain().rewrites).most_common()),
        "support": Counter(n.how for n in tilewright.support(path).nodes),
    }


def _elements(dims: Any) -> int:
    total = 1
    for n in dims:
        total *= n
    return total


def _kernel_row(k: Any) -> dict[str, Any]:
    return {
        "name": k.name,
        "operators": k.graph,
        "tasks": k.tasks,
        "flops": k.cost.flops,
        "bytes": k.cost.bytes,
        "schedule": list(k.schedule),
        "nodes": list(k.nodes),
    }


def _show_facts(data: dict[str, Any], screen: Screen) -> None:
    def counted(found: dict[str, int]) -> str:
        return ", ".join(f"{n} {what}" for what, n in found.items()) or "none"

    screen.heading(Path(data["model"]).name)
    opsets = ", ".join(f"{d} {v}" for d, v in data["opsets"].items())
    screen.line(f"made by {data['producer'] or 'an unknown program'}, for {opsets}")
    for kind in ("inputs", "outputs"):
        for value in data[kind]:
            screen.line(f"{kind[:-1]} {value}")
    screen.line(f"{data['weights']:,} weights; nodes: {counted(data['nodes'])}")
    screen.line(f"how nodes run: {counted(data['support'])}")
    screen.line(f"rewritten on import: {counted(data['rewrites'])}")
    if rows := data.get("kernels"):
        cells = [
            [
                r["name"],
                r["operators"],
                r["tasks"],
                f"{r['flops'] / 1e6:,.2f}",
                f"{r['bytes'] / 1e6:,.2f}",
            ]
            for r in rows
        ]
        screen.table(
            ["kernel", "computes", "tasks", "MFLOP", "MB"], [list(map(str, c)) for c in cells]
        )


def find_kernel(model: Any, name: str) -> Any:
    """The kernel that a name or a number means."""
    for k in model.kernels:
        if name in (k.name, k.name.partition("_")[0]):
            return k
    there = ", ".join(k.name for k in model.kernels) or "none"
    raise InputError(f"there is no kernel {name!r}; there are {there}")


def _show_kernel(model: Any, arguments: argparse.Namespace, screen: Screen) -> int:
    kernel = find_kernel(model, arguments.kernel)
    text = level_text(kernel, arguments.level)
    if arguments.html:
        _write_page(kernel, arguments, screen)
    if not is_quiet(arguments):
        if arguments.level == "source":
            screen.source(text)
        else:
            screen.line(text)
    write_json({**_kernel_row(kernel), "level": arguments.level, "text": text}, arguments.json)
    return RIGHT


def level_text(kernel: Any, level: str) -> str:
    """A level of a kernel as text; InputError if kernels of its target have no such level."""
    try:
        value = getattr(kernel, level)
    except AttributeError:
        raise InputError(f"a kernel for this target has no {level}") from None
    if level == "schedule":
        return "\n".join(value) or "as lowered"
    if level == "steps":
        return "\n\n".join(f"-- {directive}\n{loops}" for directive, loops in value)
    return str(value)


def _write_page(shown: Any, arguments: argparse.Namespace, screen: Screen) -> None:
    body = shown._repr_mimebundle_()["text/html"]
    title = html.escape(Path(arguments.model).stem)
    Path(arguments.html).write_text(PAGE.format(title=title, body=body), encoding="utf-8")
    if not is_quiet(arguments):
        screen.line(f"written to {arguments.html}")


INSPECT = Command(
    "inspect",
    "what a model consists of, and its kernels at every level",
    _add_inspect,
    _run_inspect,
    "Shows what a model file says; with --kernels or --kernel, what it is compiled to.",
)

# -- explain


def _add_explain(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add = parser.add_argument
    add("what", nargs="?", help="a kernel (k3), a node, or a value that a node computes")
    add("other", nargs="?", help="another node: why the two do not share a kernel")
    add_inputs(parser)
    add("--measure", action="store_true", help="also measure how long kernels take")
    add_json(parser)


def _run_explain(arguments: argparse.Namespace, screen: Screen) -> int:
    model = open_model(arguments)
    feeds = feeds_of(model, wanted(arguments))
    if arguments.measure:
        model.profile(feeds)
    else:
        model.warmup(feeds)
    found = model.explain(arguments.what, arguments.other) if arguments.what else model.explain()
    if not is_quiet(arguments):
        screen.line(str(found))
    write_json(found.to_dict(), arguments.json)
    return RIGHT


EXPLAIN = Command(
    "explain",
    "why a model is compiled as it is: fusion, schedules, cache, fallbacks",
    _add_explain,
    _run_explain,
    "Compiles a model for some inputs and says why so: for all of it, for a kernel, for a node, or "
    "for two nodes that one might expect in one kernel.",
)

# -- profile


def _add_profile(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_inputs(parser)
    add = parser.add_argument
    add("--seconds", type=seconds, default=1.0, help="to measure for (1)")
    add("--trace", type=file(".json"), metavar="FILE.json", help="for Perfetto and Chrome")
    add("--picture", type=file(".svg"), metavar="FILE.svg", help="the roofline")
    add_json(parser)


def _run_profile(arguments: argparse.Namespace, screen: Screen) -> int:
    model = open_model(arguments)
    found: Any = model.profile(feeds_of(model, wanted(arguments)), seconds=arguments.seconds)
    if not is_quiet(arguments):
        screen.show(found)
    if arguments.trace:
        found.trace(arguments.trace)
    if arguments.picture:
        found.picture(arguments.picture)
    write_json(found.to_dict(), arguments.json)
    return RIGHT


PROFILE = Command(
    "profile",
    "where a call's time goes, beside what the machine can do",
    _add_profile,
    _run_profile,
    "Measures each kernel within whole calls. The first profile measures the machine as well.",
)

# -- support


def _add_support(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="+", metavar="MODEL", help="ONNX files")
    add_json(parser)


def _run_support(arguments: argparse.Namespace, screen: Screen) -> int:
    data: dict[str, Any] = {}
    unknown = False
    for path in arguments.models:
        check_model(path)
        found = tilewright.support(path)
        unknown = unknown or bool(found.unknown)
        data[path] = json.loads(found.to_json())
        if not is_quiet(arguments):
            screen.heading(Path(path).name)
            screen.line(str(found))
    write_json(data, arguments.json)
    return WRONG if unknown else RIGHT


SUPPORT = Command(
    "support",
    "how every node of models would run: compiled, on the host, not at all",
    _add_support,
    _run_support,
    "Looks at models without compiling them.",
    "exit codes: 0 all nodes can run, 1 some cannot, 2 a file is no model",
)
