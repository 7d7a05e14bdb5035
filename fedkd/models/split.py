"""A network in two: what comes before a block, and the block with all that follows it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from torch import fx, nn
from torch.fx.node import Argument, Node

_TRACING = threading.Lock()
"""Held while a network is traced: PyTorch replaces the call of all modules for that time."""


class _Tracer(fx.Tracer):
    """Traces a network down to its blocks, and lets modules of other threads run as they are."""

    def __init__(self, blocks: Sequence[str]) -> None:
        super().__init__()
        self._blocks = frozenset(blocks)
        self._thread = threading.get_ident()

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Note the call of a module of the network, or make that of another thread's."""
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is called as a whole."""
        return module_qualified_name in self._blocks or super().is_leaf_module(
            m, module_qualified_name
        )


def split_at(
    network: nn.Module, block: str, blocks: Sequence[str]
) -> tuple[nn.Module, nn.Module] | None:
    """Return the parts before and from a block on; they share their modules with the network.

    Returns:
        None where the network cannot be traced, or more than the block's input is used later.
    """
    try:
        with _TRACING:
            nodes = list(_Tracer(blocks).trace(network).nodes)
    except Exception:  # a network may do anything that cannot be traced
        return None
    start = next((i for i, node in enumerate(nodes) if node.target == block), None)
    if start is None or len(nodes[start].args) != 1 or nodes[start].kwargs:
        return None
    cut, after = nodes[start].args[0], set(nodes[start:])
    if not isinstance(cut, Node):
        return None
    used = {each for node in nodes[start:] for each in node.all_input_nodes}
    # What a function such as dropout does in training is fixed when it is traced.
    random = any("dropout" in str(node.target) for node in nodes if node.op == "call_function")
    if used - after - {cut} or random:
        return None
    return _before(network, nodes[:start], cut), _after(network, nodes[start:], cut)


def _before(network: nn.Module, nodes: Sequence[Node], cut: Node) -> nn.Module:
    graph, copies = fx.Graph(), dict[Node, Node]()
    for node in nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[cut])
    return fx.GraphModule(network, graph)


def _after(network: nn.Module, nodes: Sequence[Node], cut: Node) -> nn.Module:
    graph = fx.Graph()
    copies = {cut: graph.placeholder("features")}
    for node in nodes:
        if node.op == "output":
            result: Argument = fx.map_arg(node.args[0], copies.__getitem__)
            graph.output(result)
        else:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    return fx.GraphModule(network, graph)
