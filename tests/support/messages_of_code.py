"""The texts that the package can show a user, read from its source without running it."""

import ast
import functools
from dataclasses import dataclass

from places import ROOT

#: Stands for a value that is known only when the code runs.
HOLE = "\N{HORIZONTAL ELLIPSIS}"
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Text:
    """A string of the source that is not a docstring.

    Attributes:
        where: the path from the root of the repository, and the line.
        text: the string. Names of constants in an f-string are replaced by their values, other expressions by HOLE.
    """

    where: str
    text: str


@functools.cache
def texts():
    """All texts of the package, in the order of the source."""
    paths = sorted((ROOT / "verl_gsd").rglob("*.py"))
    return tuple(text for path in paths for text in _texts_of(path))


def yielded(path):
    """The texts that functions of a file yield, each with the name of its function in front of the line number."""
    where, known = path.relative_to(ROOT), _constants(path)
    found = []
    for function in ast.walk(_tree(path)):
        if not isinstance(function, _FUNCTIONS):
            continue
        inner = known | _assigned(function.body, known, deep=True)
        for node in ast.walk(function):
            text = _text(node.value, inner) if isinstance(node, ast.Yield) and node.value is not None else None
            if text is not None and " " in text:
                found.append(Text(f"{where}:{function.name}:{node.lineno}", text))
    return found


@functools.cache
def _tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def _texts_of(path):
    where = path.relative_to(ROOT)
    return [Text(f"{where}:{node.lineno}", text) for node, text in _strings(_tree(path), _constants(path))]


def _strings(node, known):
    """(node, text) of the strings in ``node``, without docstrings. ``known``: name -> text."""
    if isinstance(node, _FUNCTIONS):
        known = known | _assigned(node.body, known, deep=True)
    body = getattr(node, "body", None)
    is_documented = isinstance(node, (*_FUNCTIONS, ast.ClassDef, ast.Module)) and ast.get_docstring(node) is not None
    for child in ast.iter_child_nodes(node):
        if is_documented and child is body[0]:
            continue
        text = _text(child, known)
        if text is not None and not isinstance(child, ast.Name):
            yield child, text
        else:
            yield from _strings(child, known)


def _text(node, known):
    """The string that an expression stands for, or None."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(value, known) or HOLE for value in node.values)
    if isinstance(node, ast.FormattedValue):
        return _text(node.value, known)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = [_text(part, known) for part in (node.left, node.right)]
        return None if parts == [None, None] else "".join(HOLE if part is None else part for part in parts)
    return None


@functools.cache
def _constants(path):
    """Name -> text of the constants of a module, its own and those that it imports from the package."""
    known = {}
    for node in _tree(path).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("verl_gsd"):
            source = ROOT.joinpath(*node.module.split(".")).with_suffix(".py")
            theirs = _constants(source) if source.is_file() else {}
            known |= {name.asname or name.name: theirs[name.name] for name in node.names if name.name in theirs}
        known |= _assigned([node], known)
    return known


def _assigned(body, known, deep=False):
    """Name -> text of assignments. A name that is assigned several texts is left out."""
    found, several = {}, set()
    nodes = [node for statement in body for node in (ast.walk(statement) if deep else [statement])]
    for node in nodes:
        targets = node.targets if isinstance(node, ast.Assign) else []
        for target in targets:
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = zip(target.elts, node.value.elts, strict=False)
            else:
                pairs = [(target, node.value)]
            for name, value in pairs:
                if not isinstance(name, ast.Name):
                    continue
                several |= {name.id} & found.keys()
                found[name.id] = _text(value, known | found)
    return {name: text for name, text in found.items() if text is not None and name not in several}
