"""Small faults for functions: what they are, where a file has room for one, and how one is planted in a fork."""

from __future__ import annotations

import ast
import contextlib
import gc
import json
import os
import re
import select
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple

# -- faults


SWAPS: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,), ast.NotIn: (ast.In,), ast.And: (ast.Or,), ast.Or: (ast.And,),
    ast.Add: (ast.Sub,), ast.Sub: (ast.Add,), ast.Mult: (ast.Div,), ast.Div: (ast.Mult,), ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.Mult,), ast.Pow: (ast.Mult,), ast.BitAnd: (ast.BitOr,), ast.BitOr: (ast.BitAnd,),
}  # fmt: skip
NAMES = {
    "min": "max", "minimum": "maximum", "amin": "amax", "argmin": "argmax", "any": "all", "floor": "ceil",
    "sum": "mean", "first": "last", "union": "intersection", "startswith": "endswith",
}  # fmt: skip
NAMES |= {new: old for old, new in NAMES.items() if old != "sum"}
DROPPED = ("abs", "clone", "detach", "contiguous", "double", "float", "sqrt", "square", "neg", "nan_to_num", "long")
"""Methods without arguments that matter, or functions of one, which are left out."""


def variants(node: ast.AST, function: ast.FunctionDef) -> Iterator[ast.AST]:
    """Faulty replacements of a node, which is left as it is."""

    def changed(**fields: Any) -> ast.AST:
        copy = deepcopy(node)
        for name, value in fields.items():
            setattr(copy, name, value)
        return copy

    if isinstance(node, ast.Compare):
        for at, op in enumerate(node.ops):
            for new in SWAPS[type(op)]:
                yield changed(ops=[*node.ops[:at], new(), *node.ops[at + 1 :]])
    elif isinstance(node, ast.BoolOp | ast.BinOp | ast.AugAssign):
        for new in SWAPS.get(type(node.op), ()):
            yield changed(op=new())
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield changed(value=not node.value)
        elif isinstance(node.value, int):
            yield changed(value=node.value + 1)
            if node.value > 0:
                yield changed(value=node.value - 1)
        elif isinstance(node.value, float):
            yield changed(value=2 * node.value if node.value else 1.0)
    elif isinstance(node, ast.Call):
        yield from _calls(node, changed)
    elif isinstance(node, ast.If | ast.IfExp | ast.While) and not isinstance(node.test, ast.Compare | ast.UnaryOp):
        yield changed(test=ast.UnaryOp(ast.Not(), node.test))
    elif isinstance(node, ast.Break | ast.Continue):
        yield ast.Continue() if isinstance(node, ast.Break) else ast.Break()
    elif isinstance(node, ast.Return) and node.value is not None and function.returns is not None:
        kind = ast.unparse(function.returns)
        if kind == "bool":
            yield changed(value=ast.UnaryOp(ast.Not(), node.value))
        elif kind.endswith("| None") and not (isinstance(node.value, ast.Constant) and node.value.value is None):
            yield changed(value=ast.Constant(None))
    if _can_go(node, function):
        yield ast.Pass()


def _calls(node: ast.Call, changed: Callable[..., ast.AST]) -> Iterator[ast.AST]:
    called = node.func
    name = called.id if isinstance(called, ast.Name) else called.attr if isinstance(called, ast.Attribute) else ""
    if name in NAMES:
        new = NAMES[name]
        yield changed(
            func=ast.Name(new, ast.Load()) if isinstance(called, ast.Name) else
            ast.Attribute(called.value, new, ast.Load()) if isinstance(called, ast.Attribute) else called
        )  # fmt: skip
    if name.rstrip("_") in DROPPED:
        if len(node.args) == 1 and (
            isinstance(called, ast.Name) or ast.unparse(called).startswith(("torch.", "math."))
        ):
            yield node.args[0]
        elif isinstance(called, ast.Attribute) and not node.args:
            yield called.value
    if name == "where" and len(node.args) == 3:
        yield changed(args=[node.args[0], node.args[2], node.args[1]])
    for at, keyword in enumerate(node.keywords):
        if keyword.arg in ("min", "max") and name.startswith("clamp"):
            other = ast.keyword({"min": "max", "max": "min"}[keyword.arg], keyword.value)
            yield changed(keywords=[*node.keywords[:at], other, *node.keywords[at + 1 :]])


def _can_go(node: ast.AST, function: ast.FunctionDef) -> bool:
    """Whether the function still makes sense without this statement."""
    if isinstance(node, ast.Expr):
        return not isinstance(node.value, ast.Constant | ast.Yield | ast.YieldFrom)
    if isinstance(node, ast.Assign):
        before = {argument.arg for argument in [*function.args.args, *function.args.kwonlyargs]} | {
            name.id for name in ast.walk(function)
            if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store) and name.lineno < node.lineno
        }  # fmt: skip
        names = [name for target in node.targets for name in ast.walk(target)
                 if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)]  # fmt: skip
        return all(name.id in before for name in names)
    return isinstance(node, ast.AugAssign | ast.Raise | ast.Delete)


@dataclass(frozen=True)
class Mutant:
    """A fault: the `variant`-th of the `node`-th node (of `ast.walk`) of a file, in a function of it."""

    path: Path
    function: str
    node: int
    variant: int
    line: int
    places: tuple[str, ...]  # of the node and its statement, as `places_of` has them
    old: str
    new: str

    @property
    def description(self) -> str:
        """Without the line's number, which other changes would move."""
        return f"{self.places[0].split(' ')[0]} {self.function}: {self.old} -> {self.new}"

    @property
    def room(self) -> str:
        return self.path.relative_to(package()).parts[0]


def package() -> Path:
    import sparring

    return Path(sparring.__file__).parent


def mutants_of(path: Path) -> Iterator[Mutant]:
    """All faults of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    places = places_of(path, tree)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for number, node in enumerate(ast.walk(tree)):
        chain = [node]
        while chain[-1] in parents:
            chain.append(parents[chain[-1]])
        functions = [at for at in chain[1:] if isinstance(at, ast.FunctionDef)]
        if not functions or _beside(chain):
            continue
        statement = next((at for at in chain if isinstance(at, ast.stmt)), None)
        name = ".".join(at.name for at in reversed(chain[1:]) if isinstance(at, ast.FunctionDef | ast.ClassDef))
        for variant, new in enumerate(variants(node, functions[0])):
            assert statement is not None
            changed = _Replace(node, new).visit(deepcopy_with(statement, node))
            lines = [getattr(node, "lineno", statement.lineno), statement.lineno]
            found = tuple(dict.fromkeys(places[line] for line in lines))
            yield Mutant(path, name, number, variant, lines[0], found, _head(statement), _head(changed))


def places_of(path: Path, tree: ast.AST | None = None) -> dict[int, str]:
    """By line, "file function+offset" of the outermost function there, which changes elsewhere do not move."""
    places: dict[int, str] = {}
    name = path.relative_to(package()) if path.is_relative_to(package()) else path
    tree = tree or ast.parse(path.read_text(encoding="utf-8"))

    def walk(node: ast.AST, names: tuple[str, ...]) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                walk(child, (*names, child.name))
            elif isinstance(child, ast.FunctionDef):
                for line in range(child.lineno, (child.end_lineno or child.lineno) + 1):
                    places[line] = f"{name} {'.'.join((*names, child.name))}+{line - child.lineno}"

    walk(tree, ())
    return places


def deepcopy_with(statement: ast.stmt, node: ast.AST) -> ast.stmt:
    """A copy of the statement in which `node` itself is kept."""
    copied: ast.stmt = deepcopy(statement, {id(node): node})
    return copied


def _beside(chain: Sequence[ast.AST]) -> bool:
    """Whether a node (first, with its ancestors) is an annotation, a default, a decorator, a message, or asserted."""
    for node, parent in pairwise(chain):
        if isinstance(parent, ast.FunctionDef | ast.ClassDef | ast.arg | ast.AnnAssign):
            body = getattr(parent, "body", [getattr(parent, "value", None)])
            if node not in body and node is not getattr(parent, "target", None):
                return True
        if isinstance(parent, ast.Raise | ast.Assert | ast.JoinedStr | ast.FormattedValue):
            return True
        if isinstance(parent, ast.keyword) and parent.arg == "strict":  # of zip, which asserts
            return True
        if isinstance(parent, ast.Call) and ast.unparse(parent.func) in ("warnings.warn", "cast"):
            return True
        if isinstance(parent, ast.Call) and ast.unparse(parent.func) == "isinstance" and node is not parent.args[0]:
            return True
    return isinstance(chain[0], ast.Assert)


def _head(node: ast.AST) -> str:
    """A statement as text on one line, of one with a body what stands above it."""
    if isinstance(node, ast.If | ast.For | ast.While | ast.With | ast.FunctionDef | ast.ClassDef | ast.Try):
        return ast.unparse(node).split("\n")[0]
    return re.sub(r"\s+", " ", ast.unparse(node))


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        if node is self.old:
            return ast.copy_location(self.new, self.old) if hasattr(self.old, "lineno") else self.new
        return self.generic_visit(node)


# -- planting


class Key(NamedTuple):
    name: str
    line: int


def codes_of(code: CodeType) -> dict[Key, CodeType]:
    """All code objects inside a module's."""
    found: dict[Key, CodeType] = {}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found[Key(constant.co_name, constant.co_firstlineno)] = constant
            found |= codes_of(constant)
    return found


def mutated(mutant: Mutant) -> dict[Key, CodeType]:
    """The code objects of the file that are others than before."""
    source = mutant.path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    node = next(node for number, node in enumerate(ast.walk(tree)) if number == mutant.node)
    function = next(
        f for f in sorted(
            (f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and any(n is node for n in ast.walk(f))),
            key=lambda f: -f.lineno,
        ) if f is not node
    )  # fmt: skip
    new = [*variants(node, function)][mutant.variant]
    before = codes_of(compile(source, str(mutant.path), "exec", dont_inherit=True))
    tree = ast.fix_missing_locations(_Replace(node, new).visit(tree))
    after = codes_of(compile(tree, str(mutant.path), "exec", dont_inherit=True))
    return {key: code for key, code in after.items() if key in before and code != before[key]}


def functions_in(paths: Sequence[Path]) -> dict[Path, list[FunctionType]]:
    """The live functions that were defined in these files, by file."""
    found: dict[Path, list[FunctionType]] = {path: [] for path in paths}
    files = {str(path): path for path in paths}
    for thing in gc.get_objects():
        if type(thing) is FunctionType and thing.__code__.co_filename in files:
            found[files[thing.__code__.co_filename]].append(thing)
    return found


def plant(codes: dict[Key, CodeType], functions: Sequence[FunctionType]) -> int:
    """Exchange the code of live functions; how many were exchanged. ValueError where a closure would not fit."""
    count = 0
    for function in functions:
        code = codes.get(Key(function.__code__.co_name, function.__code__.co_firstlineno))
        if code is not None:
            function.__code__ = code
            count += 1
    return count


def fits(codes: dict[Key, CodeType], functions: Sequence[FunctionType]) -> bool:
    """Whether `plant` would exchange something."""
    pairs = [
        (codes[key], function.__code__) for function in functions
        if (key := Key(function.__code__.co_name, function.__code__.co_firstlineno)) in codes
    ]  # fmt: skip
    return bool(pairs) and all(len(new.co_freevars) == len(old.co_freevars) for new, old in pairs)


def in_a_fork(work: Callable[[], Any], limit: float) -> Any:
    """What `work` returned in a fork of this process (as JSON), or None where it did not end in time."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            os.close(reading)
            quiet = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(quiet, stream)
            answer = json.dumps(work()).encode()
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(answer)
        finally:
            os._exit(0)
    os.close(writing)
    written = _read(reading, limit)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None if written is None else json.loads(written)


def _read(pipe: int, limit: float) -> bytes | None:
    """All that comes through a pipe; None if it is not closed in so many seconds, in which this process runs, too."""
    left, parts = limit, list[bytes]()
    with os.fdopen(pipe, "rb", buffering=0) as file:
        while left > 0:
            begun = time.monotonic()
            if select.select([file], [], [], 1.0)[0]:
                if not (part := file.read(1 << 16)):
                    return b"".join(parts) or b'"the process died"'
                parts.append(part)
            left -= min(time.monotonic() - begun, 2.0)  # more has passed where all was paused
    return None
