"""Computing ahead what a graph makes of its weights alone."""

import torch
from torch import Tensor, fx


def fold_constants(module: fx.GraphModule) -> None:
    """Replaces, in place, what depends on no input by its value, and drops what nothing uses.

    Of FastInst these are the weights with the batch norms in them, and for a fixed image size the
    position maps and the weights of pooling and resizing too.

    Args:
        module: one without effects beyond its outputs; its assertions are dropped
    """
    graph = module.graph
    values: dict[fx.Node, object] = {}
    with torch.no_grad():
        for node in graph.nodes:
            if node.op == "get_attr":
                values[node] = _attribute(module, node.target)
            elif node.op == "call_function" and all(n in values for n in node.all_input_nodes):
                args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = node.target(*args, **kwargs)
    for number, (node, value) in enumerate(values.items()):
        needed = any(user not in values for user in node.users)
        if node.op == "get_attr" or not needed or not isinstance(value, Tensor):
            continue
        name = f"folded_{number}"
        # In the layout that it has there: views further on may rely on that.
        module.register_buffer(name, value.detach().clone())
        with graph.inserting_before(node):
            node.replace_all_uses_with(graph.get_attr(name))
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    module.recompile()
    used = {node.target for node in graph.nodes if node.op == "get_attr"}
    for name, _ in [*module.named_parameters(), *module.named_buffers()]:
        if name not in used:
            owner, _, leaf = name.rpartition(".")
            delattr(module.get_submodule(owner), leaf)


def _attribute(module: fx.GraphModule, name: str) -> object:
    owner, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(owner), leaf)
