"""`tilewright export`: the optimised graph as an ONNX file, with fusion groups as functions."""

from __future__ import annotations

import argparse
from pathlib import Path

import onnx

from tilewright.errors import InputError
from tilewright.explore.commands.base import (
    RIGHT,
    Command,
    add_inputs,
    add_json,
    add_model,
    is_quiet,
    open_model,
    wanted,
    write_json,
)
from tilewright.explore.feeds import feeds_of
from tilewright.explore.grouped import grouped_model
from tilewright.explore.screen import Screen
from tilewright.graph.export import to_model

LARGEST = 2_000_000_000  # bytes that one file of protobuf can hold


def _add(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("output", metavar="OUT.onnx", help="the file to write")
    parser.add_argument("--plain", action="store_true", help="without groups: nothing is compiled")
    parser.add_argument("--force", action="store_true", help="write over a file that exists")
    add_inputs(parser)
    add_json(parser)


def _run(arguments: argparse.Namespace, screen: Screen) -> int:
    target = Path(arguments.output)
    if target.suffix != ".onnx":
        raise InputError(f"{target} does not end in .onnx")
    if target.exists() and not arguments.force:
        raise InputError(f"{target} exists: --force writes over it")
    model = open_model(arguments)
    if arguments.plain:
        proto = to_model(model.graph)
    else:
        model.warmup(feeds_of(model, wanted(arguments)))
        proto = grouped_model(model.graph, [(k.name, k.nodes) for k in model.kernels])
    if proto.ByteSize() > LARGEST:
        weights = f"{target.name}.data"
        onnx.save(proto, str(target), save_as_external_data=True, location=weights)
    else:
        target.write_bytes(proto.SerializeToString())
    functions = {f.name: [n.op_type for n in f.node] for f in proto.functions}
    nodes = len(proto.graph.node)
    if not is_quiet(arguments):
        screen.line(f"{target}: {nodes} nodes, {len(functions)} of them kernels of several nodes")
    write_json({"output": str(target), "nodes": nodes, "functions": functions}, arguments.json)
    return RIGHT


EXPORT = Command(
    "export",
    "write the optimised graph as an ONNX file, with kernels as functions",
    _add,
    _run,
    "Writes the graph after its rewrites as an ONNX file that Netron and other engines open. Nodes "
    "that share a kernel, for inputs of these shapes, are the body of a function.",
)
