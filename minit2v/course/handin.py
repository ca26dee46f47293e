"""What a notebook hands in: definitions taken out of it by name.

Cells are never run one after the other. To judge `ring`, the last definition of `ring` is taken, with the imports,
functions and values it needs, wherever they stand. So deleted, copied, moved and renamed cells break nothing, and a
cell that does not parse, or takes an hour, harms only what needs it. The notebook is read and never written.
"""

import ast
import json
import linecache
import symtable
from pathlib import Path
from typing import Any


class HandInError(Exception):
    """The hand-in cannot be read, or what is asked for cannot be made of it. The message is for the learner."""


def take(paths: list[Path], target: str) -> Any:
    """The value of `target` in some notebooks; None if nothing defines it, or only a stub does.

    Raises HandInError if the definition, or something that it needs, does not run.
    """
    statements, broken = statements_of(paths)
    needed = _needed(statements, target)
    if needed is None:
        for source, error in broken.items():
            if target in source:
                raise HandInError(f"the cell with `{target}` is not valid Python: {error}")
        return None
    space: dict[str, Any] = {"__name__": "hand_in"}
    for number, statement in enumerate(needed):
        file = f"<hand-in: {target}, {number}>"
        text = ast.unparse(statement)
        linecache.cache[file] = (len(text), None, [line + "\n" for line in text.splitlines()], file)
        try:
            exec(compile(text, file, "exec"), space)
        except NotImplementedError:
            return None
        except Exception as error:
            raise HandInError(f"{type(error).__name__} in `{text.splitlines()[0]}`: {error}") from error
    return space[target]


def statements_of(paths: list[Path]) -> tuple[list[ast.stmt], dict[str, str]]:
    """The top-level statements of all code cells, and of each cell that does not parse {source: what is wrong}.

    Lines that begin with % or ! are for Jupyter; they are left out. Raises HandInError for a file that is no notebook.
    """
    statements, broken = [], {}
    for path in paths:
        try:
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        except (ValueError, KeyError, TypeError) as error:
            raise HandInError(f"{path.name} is not a notebook that can be read "
                              f"({type(error).__name__}: {error})") from error
        for source in sources:
            try:
                statements += ast.parse("\n".join(
                    "" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines())).body
            except SyntaxError as error:
                broken[source] = f"{error.msg} (line {error.lineno} of the cell)"
    return statements, broken


def _needed(statements: list[ast.stmt], target: str) -> list[ast.stmt] | None:
    """The statements that `target` follows from, in their order; None if it is nowhere defined."""
    defines: dict[str, int] = {}
    for place, statement in enumerate(statements):
        for name in _defined(statement):
            if name not in defines or not _is_stub(statement) or _is_stub(statements[defines[name]]):
                defines[name] = place                       # the last one counts, but a stub covers nothing
    if target not in defines:
        return None
    chosen, todo = set(), [target]
    while todo:
        place = defines.get(todo.pop())
        if place is not None and place not in chosen:
            chosen.add(place)
            todo += _used(statements[place])
    return [statements[place] for place in sorted(chosen)]


def _used(statement: ast.stmt) -> set[str]:
    """The names that a statement takes from outside; arguments and variables of its functions are not among them."""
    top = symtable.symtable(ast.unparse(statement), "<hand-in>", "exec")
    tables, found = [top], set()
    while tables:
        table = tables.pop()
        tables += table.get_children()
        found |= {symbol.get_name() for symbol in table.get_symbols()
                  if symbol.is_referenced() and (table is top or symbol.is_global())}
    return found


def _defined(statement: ast.stmt) -> list[str]:
    """The names that a top-level statement binds; none for those that only do something."""
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return [statement.name]
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return [(alias.asname or alias.name).partition(".")[0] for alias in statement.names]
    if isinstance(statement, (ast.Assign, ast.AnnAssign)):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        return [node.id for part in targets for node in ast.walk(part) if isinstance(node, ast.Name)]
    return []


def _is_stub(statement: ast.stmt) -> bool:
    return any(isinstance(node, ast.Raise) and "NotImplementedError" in ast.unparse(node)
               for node in ast.walk(statement))
