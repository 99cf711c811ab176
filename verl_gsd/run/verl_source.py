"""Finds classes, functions and their parameters in the source of a package, without importing it.

Importing all of verl that a run uses takes half a minute, and needs vLLM and the versions of other packages that this
verl needs. Its source can be read in a second, also that of a checkout which is not installed.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True)
class Parameters:
    """The parameters of a function, without ``self`` and ``cls``.

    Attributes:
        names: those that a caller can give by position, in their order.
        is_open: whether the function also takes ``*args`` or ``**kwargs``.
        keywords: those that a caller must name.
    """

    names: tuple[str, ...]
    is_open: bool = False
    keywords: tuple[str, ...] = ()

    @classmethod
    def of(cls, function: ast.FunctionDef | ast.AsyncFunctionDef) -> Parameters:
        arguments = function.args
        names = [one.arg for one in (*arguments.posonlyargs, *arguments.args)]
        if names and names[0] in ("self", "cls"):
            names = names[1:]
        keywords = tuple(one.arg for one in arguments.kwonlyargs)
        return cls(tuple(names), bool(arguments.vararg or arguments.kwarg), keywords)

    def matches(self, other: Parameters) -> bool:
        """Whether a function with these parameters can stand for one with those of ``other``.

        If this function is open, it passes on what it does not name.
        """
        if not self.is_open:
            return (self.names, set(self.keywords)) == (other.names, set(other.keywords))
        rest = {*other.names[len(self.names) :], *other.keywords}
        return other.names[: len(self.names)] == self.names and rest.issuperset(self.keywords)

    def __str__(self) -> str:
        return f"({', '.join([*self.names, *(['...'] if self.is_open else []), *self.keywords])})"


@dataclass(frozen=True)
class Definition:
    """Where a name is defined.

    Attributes:
        module: the module's name.
        node: the class or function; None for a variable, a module, or a name from a package that is not read.
    """

    module: str
    node: ast.AST | None


#: Base classes of other packages that add no member which we use.
_EMPTY_BASES = ("ABC", "Enum", "object")


class Module:
    """A parsed module.

    Raises:
        SyntaxError: this Python cannot parse it.
    """

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path
        self.tree = ast.parse(path.read_bytes(), filename=str(path))

    @cached_property
    def names(self) -> dict[str, ast.AST]:
        """Name at the top level -> the class, function, assignment or import that binds it."""
        return {name: node for node in _statements(self.tree.body) for name in bound_names(node)}

    @cached_property
    def star_imports(self) -> list[str]:
        """The modules from which this one imports all names."""
        imports = (node for node in _statements(self.tree.body) if isinstance(node, ast.ImportFrom))
        return [self.absolute(node) for node in imports if node.names[0].name == "*"]

    def absolute(self, node: ast.ImportFrom) -> str:
        """The module that an import statement of this module names."""
        if not node.level:
            return node.module or ""
        package = self.name.split(".") if self.path.name == "__init__.py" else self.name.split(".")[:-1]
        package = package[: len(package) - (node.level - 1)]
        return ".".join([*package, *([node.module] if node.module else [])])


class PackageSource:
    """The source of some packages.

    Args:
        folders: package -> its folder.
    """

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._folders = folders
        self._modules: dict[str, Module | None] = {}

    def module(self, name: str) -> Module | None:
        """A module by its full name; None if there is none.

        Raises:
            SyntaxError: this Python cannot parse it.
        """
        if name not in self._modules:
            path = self.path(name)
            self._modules[name] = None if path is None else Module(name, path)
        return self._modules[name]

    def is_read(self, module: str) -> bool:
        """Whether ``module`` belongs to one of the packages."""
        return module.partition(".")[0] in self._folders

    def path(self, name: str) -> Path | None:
        """The file of a module by its full name; None if there is none. The module is not parsed."""
        top, *rest = name.split(".")
        if top not in self._folders:
            return None
        place = self._folders[top].joinpath(*rest)
        files = (place / "__init__.py", place.with_name(f"{place.name}.py"))
        return next((file for file in files if file.is_file()), None)

    def find(self, module: str, path: str) -> Definition | None:
        """Find ``name``, ``Class.member`` or ``submodule.name`` in a module; None if there is no such name.

        Imports are followed. A member is also found in base classes, and where a method assigns ``self.member``.
        Members of variables, and of what other packages define, are not known: they count as found.

        Raises:
            SyntaxError: this Python cannot parse the module, or one from which the name comes.
        """
        name, _, member = path.partition(".")
        found = self._find_name(module, name)
        if found is None or not member:
            return found
        if found.module == f"{module}.{name}":
            return self._find_name(found.module, member)
        return self.member(found, member) if isinstance(found.node, ast.ClassDef) else Definition(found.module, None)

    def is_own(self, module: str, path: str) -> bool:
        """Whether the body of ``Class`` binds ``member``, for a ``path`` of Class.member."""
        name, _, member = path.partition(".")
        owner = self._find_name(module, name)
        return (
            owner is not None
            and isinstance(owner.node, ast.ClassDef)
            and any(member in bound_names(node) for node in owner.node.body)
        )

    def member(self, owner: Definition, name: str) -> Definition | None:
        """Find a member of a class or of its base classes."""
        assert isinstance(owner.node, ast.ClassDef)
        for node in owner.node.body:
            if name in bound_names(node):
                is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                return Definition(owner.module, node if is_function else None)
        if any(_is_own_attribute(node, name) for node in ast.walk(owner.node)):
            return Definition(owner.module, None)
        for base in owner.node.bases:
            if isinstance(base, ast.Name) and base.id in _EMPTY_BASES:
                continue
            origin = self._find_name(owner.module, base.id) if isinstance(base, ast.Name) else None
            if origin is None or not isinstance(origin.node, ast.ClassDef):
                return Definition(owner.module, None)  # another package's class, which may have the member
            if (found := self.member(origin, name)) is not None:
                return found
        return None

    def _find_name(self, module_name: str, name: str) -> Definition | None:
        module = self.module(module_name)
        if module is None:
            return None
        node = module.names.get(name)
        if isinstance(node, ast.ImportFrom):
            origin = module.absolute(node)
            original = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
            return self._find_name(origin, original) if self.is_read(origin) else Definition(origin, None)
        if node is not None:
            is_definition = isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            return Definition(module_name, node if is_definition else None)
        if self.path(f"{module_name}.{name}") is not None:
            return Definition(f"{module_name}.{name}", None)
        for origin in module.star_imports:
            if (found := self._find_name(origin, name)) is not None:
                return found
        return None


def installed(*packages: str) -> dict[str, Path]:
    """Package -> its folder, for those packages that are installed. They are not imported."""
    specs = {name: importlib.util.find_spec(name) for name in packages}
    return {name: Path(spec.origin).parent for name, spec in specs.items() if spec is not None and spec.origin}


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements at the top level, also those within ``if``, ``try`` and ``with``."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With):
            for field in ("body", "orelse", "finalbody"):
                yield from _statements(getattr(node, field, []))
            for handler in getattr(node, "handlers", []):
                yield from _statements(handler.body)


def bound_names(node: ast.AST) -> list[str]:
    """The names that a statement binds."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return [node.name]
    if isinstance(node, ast.Import):
        return [alias.asname or alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]


def _is_own_attribute(node: ast.AST, name: str) -> bool:
    """Whether ``node`` is ``self.name`` as the target of an assignment."""
    return (
        isinstance(node, ast.Attribute)
        and node.attr == name
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    )
