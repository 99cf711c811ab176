"""The keys of a config that source code reads as attributes, such as ``config.data.train_batch_size``."""

from __future__ import annotations

import ast
from collections.abc import Mapping

#: Names of arguments and attributes that hold a whole config.
_ARGUMENTS, _ATTRIBUTES = ("config", "c"), ("config", "_config")
_Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


def read_keys(tree: ast.AST) -> set[str]:
    """The dotted keys that a module reads from arguments named ``config`` or ``c``, and from ``self.config``.

    A name that was assigned a section stands for it: after ``actor = config.actor_rollout_ref.actor``,
    ``actor.strategy`` is ``actor_rollout_ref.actor.strategy``. Of ``config.trainer.get("val_only")``, the section
    ``trainer`` is read. A key that is read by ``get`` or ``OmegaConf.select`` can be missing, and is not listed.
    """
    found: set[str] = set()
    _visit(tree, {}, found)
    return found


def _visit(node: ast.AST, known: dict[str, str], found: set[str]) -> None:
    """Add the keys below ``node``.

    Args:
        known: name -> the key of the section that it holds; empty for the whole config. Assignments add to it.
    """
    if isinstance(node, _Function):
        arguments = [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)]
        known = {name: key for name, key in known.items() if name not in arguments}
        known |= {name: "" for name in arguments if name in _ARGUMENTS}
    if isinstance(node, ast.Attribute) and (key := _key(node, known)):
        found.add(key)
        return
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):  # the last attribute is a method
        _visit(node.func.value, known, found)
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            _visit(argument, known, found)
        return
    for child in ast.iter_child_nodes(node):
        _visit(child, known, found)
    if isinstance(node, ast.Assign):
        for target in node.targets:
            _assign(target, node.value, known)


def _assign(target: ast.expr, value: ast.expr, known: dict[str, str]) -> None:
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
        for one, other in zip(target.elts, value.elts, strict=True):
            _assign(one, other, known)
    elif isinstance(target, ast.Name):
        known.pop(target.id, None)
        if (key := _key(value, known)) is not None:
            known[target.id] = key


def _key(node: ast.expr, known: Mapping[str, str]) -> str | None:
    """The key that an expression stands for; None if it is no part of a config."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if not isinstance(node, ast.Attribute):
        return None
    if isinstance(node.value, ast.Name) and node.value.id == "self" and node.attr in _ATTRIBUTES:
        return ""
    section = _key(node.value, known)
    return None if section is None else f"{section}.{node.attr}".lstrip(".")
