"""`tilewright verify`: outputs against another implementation, node by node where that is asked."""

from __future__ import annotations

import argparse
import dataclasses
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx

from tilewright import driver
from tilewright.errors import ModelError, TilewrightError
from tilewright.explore.commands.base import (
    RIGHT,
    WRONG,
    Command,
    add_inputs,
    add_json,
    add_model,
    is_quiet,
    open_model,
    positive,
    wanted,
    write_json,
)
from tilewright.explore.compare import array_error
from tilewright.explore.feeds import feeds_of
from tilewright.explore.oracle import ORACLES, NodeVerdict, check_nodes
from tilewright.explore.process import flat
from tilewright.explore.screen import Screen, progress
from tilewright.options import Options

SHOWN = 15  # nodes with the largest errors


def _add(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add = parser.add_argument
    add("--against", default="reference", choices=tuple(ORACLES), help="reference: ONNX's own")
    add("--nodes", action="store_true", help="also each node by itself, on the other's values")
    add("--cases", type=positive, default=1, metavar="N", help="draws of random inputs (1)")
    add("--tolerance", type=float, default=1e-3, help="largest error that counts as right (1e-3)")
    add_inputs(parser)
    add_json(parser)


def _run(arguments: argparse.Namespace, screen: Screen) -> int:
    model = open_model(arguments)
    proto = _proto(arguments.model)
    base = wanted(arguments)
    cases = []
    for number in range(arguments.cases):
        feeds = feeds_of(model, dataclasses.replace(base, seed=base.seed + number))
        got = flat(model.run(feeds))
        want = flat(_oracle(arguments.against, proto, feeds, False))
        cases.append({n: array_error(got[n], want[n]) if n in got else math.inf for n in want})
    nodes: list[NodeVerdict] = []
    if arguments.nodes:
        feeds = feeds_of(model, base)
        nodes = _nodes(arguments, proto, feeds)
    worst = max((e for case in cases for e in case.values()), default=0.0)
    data = {
        "model": arguments.model,
        "against": arguments.against,
        "right": worst <= arguments.tolerance,
        "errors": [{n: _finite(e) for n, e in case.items()} for case in cases],
        "nodes": [{**asdict(n), "error": _finite(n.error)} for n in nodes],
    }
    if not is_quiet(arguments):
        _show(arguments, cases, nodes, screen)
    write_json(data, arguments.json)
    wrong = [n for n in nodes if n.error is not None and n.error > arguments.tolerance]
    return RIGHT if worst <= arguments.tolerance and not wrong else WRONG


def _proto(path: str) -> onnx.ModelProto:
    try:
        return onnx.load(path)
    except Exception as error:  # the message is protobuf's own
        raise ModelError(f"{path} is not an ONNX model: {error}") from error


def _oracle(name: str, proto: onnx.ModelProto, feeds: dict[str, Any], every: bool) -> Any:
    try:
        return ORACLES[name](proto, feeds, every)
    except TilewrightError:
        raise
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        raise TilewrightError(f"{name} cannot run the model: {told}") from error


def _nodes(
    arguments: argparse.Namespace, proto: onnx.ModelProto, feeds: dict[str, Any]
) -> list[NodeVerdict]:
    values = _oracle(arguments.against, proto, feeds, True)
    shop = driver.workshop(Options.from_environment(), target=arguments.target)

    def compiled(alone: onnx.ModelProto) -> Any:
        return driver.compile_in(shop, alone).run

    found = []
    with progress(len(proto.graph.node)) as begin:
        for verdict in check_nodes(proto, feeds, values, compiled):
            begin(verdict.node)
            found.append(verdict)
    return found


def _finite(error: float | None) -> float | str | None:
    """JSON has no infinity."""
    return str(error) if error is not None and not math.isfinite(error) else error


def _show(
    arguments: argparse.Namespace,
    cases: list[dict[str, float]],
    nodes: list[NodeVerdict],
    screen: Screen,
) -> None:
    screen.heading(f"{Path(arguments.model).name} against {arguments.against}")
    worst = {n: max(case[n] for case in cases) for n in cases[0]}
    limit = arguments.tolerance
    rows = [[n, "right" if e <= limit else "WRONG", f"{e:.1e}"] for n, e in worst.items()]
    screen.table(["output", "verdict", "largest error"], rows)
    if not nodes:
        return
    known = [n for n in nodes if n.error is not None]
    wrong = [n for n in known if (n.error or 0) > limit]
    screen.line(f"{len(known)} of {len(nodes)} nodes compared by themselves, {len(wrong)} wrong")
    order = sorted(known, key=lambda n: -(n.error or 0))
    shown = order[: max(SHOWN, len(wrong))]
    screen.table(
        ["node", "operator", "error"], [[n.node, n.op_type, f"{n.error:.1e}"] for n in shown]
    )
    for n in nodes:
        if n.error is None:
            screen.line(f"not compared: {n.node} ({n.op_type}): {n.reason}")


VERIFY = Command(
    "verify",
    "hold the outputs against another implementation, node by node if asked",
    _add,
    _run,
    "Runs a model here and elsewhere on the same inputs. An error is the largest difference over "
    "the largest magnitude of the output; other types than floats must be equal.",
    "exit codes: 0 all is right, 1 something is wrong, 2 it could not be compared",
)
