"""The rules of the notebooks that a program can check, as functions over a loaded notebook."""

import ast
import builtins
import copy
import dis
import gc
import json
from functools import cache
from pathlib import Path
from types import CodeType

# the course in its order of dependency; the README's table says what each builds and which are there
PLANNED = (
    "00_start_here",
    "01_diffusion_loss_basics",
    "02_diffusion_tta_dit",
    "03_clip_sd_lora",
    "04_segmentation_depth",
    "05_dda_sda",
    "06_difftpt",
    "07_compare",
)
REQUIRED = {"profile": "str", "data_root": "str", "device": "str", "seed": "int", "fast": "bool"}


@cache
def parsed(text: str) -> ast.Module:
    """The syntax tree of a source, made once; treat it as read-only.

    Without a collection of garbage meanwhile: CPython 3.11 counts the depth of all trees that are being made in one
    place, so one that a finalizer makes in between is an error here (python/cpython#106905)."""
    gc.disable()
    try:
        return ast.parse(text)
    finally:
        gc.enable()


def load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell: dict) -> str:
    return "".join(cell["source"])


def code_cells(nb: dict) -> list[dict]:
    return [c for c in nb["cells"] if c["cell_type"] == "code"]


def tagged(nb: dict) -> list[dict]:
    return [c for c in code_cells(nb) if "parameters" in c["metadata"].get("tags", [])]


def parameters(nb: dict) -> dict[str, tuple[str, object, str]]:
    """name -> (type, value, help) of the parameters cell. Raises AssertionError for a line of another form."""
    (cell,) = tagged(nb)
    out = {}
    for line in source(cell).splitlines():
        statement, _, comment = line.partition("  # ")
        (node,) = parsed(statement).body
        assert isinstance(node, ast.AnnAssign), f"not `name: type = value  # help`: {line}"
        assert comment.strip(), f"no help: {line}"
        out[node.target.id] = (ast.unparse(node.annotation), ast.literal_eval(node.value), comment)
    return out


def global_reads(tree: ast.Module) -> set[str]:
    """Lower-case globals that functions of the notebook read: neither imports, functions, classes nor arguments."""
    free = set(dir(builtins))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            free |= {(a.asname or a.name).split(".")[0] for a in node.names}
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            free.add(node.name)
    found = set()
    for function in (n for n in tree.body if isinstance(n, ast.FunctionDef)):
        inner = {a.arg for n in ast.walk(function) if isinstance(n, ast.arguments) for a in all_arguments(n)}
        inner |= {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        inner |= {n.name for n in ast.walk(function) if isinstance(n, ast.FunctionDef)}
        reads = {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        found |= {name for name in reads - inner - free if not name.isupper()}
    return found


def all_arguments(node: ast.arguments) -> list[ast.arg]:
    return [*node.posonlyargs, *node.args, *node.kwonlyargs, *filter(None, (node.vararg, node.kwarg))]


def names_bound_twice(sources: list[str]) -> dict[str, list[int]]:
    """Names that one cell hands to another and that several cells bind -> the numbers of these cells.

    Where there are none, a cell that runs again, alone or from the first cell of its section on, meets what it met."""
    read, bound, _ = zip(*map(_names, sources), strict=True)
    handed = set().union(*read)
    where = {name: [i for i, names in enumerate(bound) if name in names] for name in handed & set().union(*bound)}
    return {name: cells for name, cells in where.items() if len(cells) > 1}


def needed_cells(sources: list[str], last: int) -> list[int]:
    """The cells that cell `last` needs, itself included: backwards, those that bind a name which is read later on.

    Relies on the rule that functions read no variable of the notebook, and sees no change of an object in place."""
    kept, wanted = [], set()
    for i in range(last, -1, -1):
        read, bound, certain = _names(sources[i])
        if i == last or bound & wanted:
            kept.append(i)
            wanted = wanted - certain | read
    return kept[::-1]


def _names(source: str) -> tuple[set[str], set[str], set[str]]:
    """The names that a cell reads before it has certainly bound them, in functions too; those it binds; those it
    certainly binds."""
    read, bound, certain = set(), set(), set()
    for part in parsed(source).body:
        here = set()
        for i in dis.get_instructions(compile(ast.Module([part], []), "cell", "exec")):
            if i.opname == "STORE_NAME":
                here.add(i.argval)
            elif i.opname == "LOAD_NAME":
                read |= {i.argval} - here - certain
            elif isinstance(i.argval, CodeType):
                read |= _globals(i.argval) - here - certain
        bound |= here
        if not isinstance(part, ast.If | ast.Try):  # these may bind or not
            certain |= here
    return read, bound, certain


def _globals(code: CodeType) -> set[str]:
    """What a function, and each function inside it, reads from outside."""
    inner = (_globals(c) for c in code.co_consts if isinstance(c, CodeType))
    return {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}.union(*inner)


def notebook_tree(nb: dict) -> ast.Module:
    lines = "\n".join(source(c) for c in code_cells(nb)).splitlines()
    return parsed("\n".join(line for line in lines if not line.startswith(("%", "!"))))


def bare(node: ast.AST) -> str:
    """A function's syntax tree without docstring and annotations, as text."""
    node = copy.deepcopy(node)
    for n in ast.walk(node):
        if isinstance(n, ast.FunctionDef):
            n.returns, n.decorator_list = None, []
            if ast.get_docstring(n) is not None:
                n.body = n.body[1:] or [ast.Pass()]
        if isinstance(n, ast.arg):
            n.annotation = None
    return ast.dump(node)


def functions(tree: ast.Module) -> dict[str, ast.FunctionDef]:
    return {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
