"""The arrows of the house: who may import whom, and who may look at the holdout."""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

MAY_IMPORT = {
    "flows": {"flows", "tasks", "platforms", "deployments"},
    "tasks": {"tasks", "platforms", "deployments"},
    "platforms": {"platforms", "deployments"},
    "deployments": {"deployments"},
    "serving": {"serving", "deployments"},
}
ROOMS = set(MAY_IMPORT)

LOOKS_AT_THE_HOLDOUT = "tasks.evaluate"
MAKES_THE_HOLDOUT = "tasks.split"
TRAINS = {"tasks.train", "tasks.search", "tasks.probe"}


@cache
def modules(root: Path) -> dict[str, ast.Module]:
    """Every module of the rooms under a folder, by its dotted name."""
    found = {}
    for room in sorted(ROOMS):
        for path in sorted((root / room).rglob("*.py")):
            name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
            found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


def planted(**sources: str) -> dict[str, ast.Module]:
    """Modules made up for a test; a double underscore in a name stands for the dot."""
    return {name.replace("__", "."): ast.parse(source) for name, source in sources.items()}


# Imports ----------------------------------------------------------------------------------------------------


def imports(name: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and full name of everything a module imports, wherever in it that happens."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".")[: -node.level] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            yield node.lineno, base
            yield from ((node.lineno, f"{base}.{alias.name}".lstrip(".")) for alias in node.names)
        elif isinstance(node, ast.Call) and called(node) in {"import_module", "__import__"}:
            named = node.args[0] if node.args else None
            if isinstance(named, ast.Constant) and isinstance(named.value, str):
                yield node.lineno, named.value


def called(node: ast.Call) -> str:
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def against_the_arrows(house: Mapping[str, ast.Module]) -> list[str]:
    """Each import of a room by a room that may not know it."""
    return sorted(
        {
            f"{name}:{line} imports {imported.split('.')[0]}"
            for name, tree in house.items()
            for line, imported in imports(name, tree)
            if imported.split(".")[0] in ROOMS - MAY_IMPORT[name.split(".")[0]]
        }
    )


def serving_with_prefect(house: Mapping[str, ast.Module]) -> list[str]:
    """Each import of Prefect by serving, and by what serving imports."""
    reached = {name for name in house if name.split(".")[0] == "serving"}
    waiting = sorted(reached)
    while waiting:
        name = waiting.pop()
        for _, imported in imports(name, house[name]):
            if imported in house and imported not in reached:
                reached.add(imported)
                waiting.append(imported)
    return sorted(
        {
            f"{name}:{line} imports {imported}"
            for name in reached
            for line, imported in imports(name, house[name])
            if imported.split(".")[0].startswith("prefect")
        }
    )


def test_every_import_follows_the_arrows() -> None:
    assert against_the_arrows(modules(ROOT)) == []


def test_every_room_but_those_to_come_is_looked_at() -> None:
    looked_at = {name.split(".")[0] for name in modules(ROOT)}

    assert {"flows", "tasks", "platforms", "deployments"} <= looked_at
    assert ("serving" in looked_at) == any((ROOT / "serving").glob("*.py"))


def test_models_know_nothing_but_deployments() -> None:
    models = {name: tree for name, tree in modules(ROOT).items() if name.startswith("deployments.models")}

    assert models
    assert against_the_arrows(models) == []


def test_serving_never_imports_prefect() -> None:
    assert serving_with_prefect(modules(ROOT)) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("deployments__models__churn", "from tasks.ingest import read_source"),
        ("deployments__spec", "import platforms"),
        ("platforms__local", "def late():\n    from tasks import ingest"),
        ("tasks__train", "import flows.train as t"),
        ("tasks__train", "import importlib\nimportlib.import_module('flows.train')"),
        ("tasks__train", "if TYPE_CHECKING:\n    from serving.gateway import Gateway"),
        ("serving__scorer", "from platforms import platform_for"),
        ("serving__scorer", "from .. import tasks"),
        ("flows__train", "from serving import scorer"),
    ],
)
def test_an_import_against_the_arrows_is_found(module: str, source: str) -> None:
    found = against_the_arrows(planted(**{module: source}))

    assert len(found) == 1
    assert found[0].startswith(f"{module.replace('__', '.')}:")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("flows__train", "from tasks import steps\nfrom flows import console"),
        ("tasks__train", "from platforms.platform import Platform\nimport sklearn.flows"),
        ("serving__scorer", "from deployments.spec import ModelSpec\nfrom . import log"),
    ],
)
def test_an_import_along_the_arrows_is_let_pass(module: str, source: str) -> None:
    assert against_the_arrows(planted(**{module: source})) == []


def test_prefect_in_serving_is_found_also_where_another_module_brings_it() -> None:
    direct = planted(serving__scorer="def answer():\n    import prefect.client")
    brought = planted(
        serving__scorer="from deployments.secret import value", deployments__secret="from prefect import flow"
    )

    assert serving_with_prefect(direct) == ["serving.scorer:2 imports prefect.client"]
    assert "deployments.secret:1 imports prefect" in serving_with_prefect(brought)


# The holdout ------------------------------------------------------------------------------------------------


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    given = function.args
    others = [one for one in (given.vararg, given.kwarg) if one is not None]
    return [*given.posonlyargs, *given.args, *given.kwonlyargs, *others]


def says(node: ast.AST | None, name: str) -> bool:
    """Whether a name or an attribute of that name stands anywhere in a piece of code."""
    return node is not None and any(
        (isinstance(part, ast.Name) and part.id == name)
        or (isinstance(part, ast.Attribute) and part.attr == name)
        or (isinstance(part, ast.arg) and part.arg == name)
        for part in ast.walk(node)
    )


def annotation(parameter: ast.arg) -> ast.expr | None:
    """A parameter's type, taken out of its quotes."""
    noted = parameter.annotation
    if isinstance(noted, ast.Constant) and isinstance(noted.value, str):
        return ast.parse(noted.value, mode="eval").body
    return noted


def takes(parameter: ast.arg, kind: str) -> bool:
    """Whether a parameter is of a type (or None), and not only of something that holds it."""
    noted = annotation(parameter)
    wanted = [noted.left, noted.right] if isinstance(noted, ast.BinOp) else [noted]
    return any(
        (isinstance(one, ast.Name) and one.id == kind)
        or (isinstance(one, ast.Attribute) and one.attr == kind)
        for one in wanted
    )


def table_reads(node: ast.AST) -> list[ast.Call]:
    """Calls that bring rows: `<...>.tables.read(...)`, `open` or `batches`, also of a table store by that name."""
    return [
        call
        for call in ast.walk(node)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in {"read", "open", "batches"}
        and says(call.func.value, "tables")
    ]


def sees_the_holdout(function: ast.AST) -> bool:
    """Whether a function is handed the whole split, or speaks of the holdout."""
    handed = isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and any(
        says(annotation(parameter), "Parts") for parameter in parameters(function)
    )
    return handed or says(function, "holdout")


def looks_at_the_holdout(house: Mapping[str, ast.Module]) -> list[str]:
    """Each place outside evaluation where the holdout's rows could be seen.

    Only evaluation is handed a part as such. Whoever else is handed the whole split, or names the holdout, only
    describes it: no such function reads a table, and of the modules that do both in different functions there is
    one, which trains and describes its run. Search and probes do not know the word.
    """
    found = []
    for name, tree in house.items():
        if not name.startswith("tasks.") or name in {LOOKS_AT_THE_HOLDOUT, MAKES_THE_HOLDOUT}:
            continue
        for function in functions(tree):
            where = f"{name}:{function.lineno} {function.name}"
            if any(one.arg == "holdout" or takes(one, "Part") for one in parameters(function)):
                found.append(f"{where} is handed a part")
            elif sees_the_holdout(function) and table_reads(function):
                found.append(f"{where} sees the holdout and reads tables")
            elif name in TRAINS and says(function, "holdout") and not describes(function):
                found.append(f"{where} names the holdout")
        if name in TRAINS - {"tasks.train"} and says(tree, "holdout"):
            found.append(f"{name} names the holdout")
        if name not in TRAINS and sees_the_holdout(tree) and table_reads(tree):
            found.append(f"{name} sees the holdout and reads tables")
    return found


def describes(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a function is handed the whole split and no part of its rows: to say how many there are."""
    return any(takes(parameter, "Parts") for parameter in parameters(function))


def test_only_evaluation_looks_at_the_holdout() -> None:
    assert looks_at_the_holdout(modules(ROOT)) == []


def test_evaluation_looks_at_the_holdout_once() -> None:
    tree = modules(ROOT)[LOOKS_AT_THE_HOLDOUT]

    reads = [call for call in table_reads(tree) if any(says(argument, "holdout") for argument in call.args)]

    assert len(reads) == 1


def test_training_names_the_holdout_only_where_it_describes_its_run() -> None:
    house = modules(ROOT)

    naming = {
        f"{name}.{function.name}"
        for name in TRAINS
        for function in functions(house[name])
        if says(function, "holdout")
    }

    assert naming == {"tasks.train._describe_run"}


@pytest.mark.parametrize(
    ("module", "source", "problem"),
    [
        ("tasks__search", "def search(rows, holdout): ...", "is handed a part"),
        ("tasks__search", "def search(rows, last: Part): ...", "is handed a part"),
        ("tasks__search", "def search(rows, last: 'Part | None'): ...", "is handed a part"),
        ("tasks__search", "def search(parts: Parts):\n    return parts.holdout", "names the holdout"),
        ("tasks__probe", "LAST = split.holdout", "tasks.probe names the holdout"),
        (
            "tasks__train",
            "def open_run(platform, parts: Parts):\n    return platform.tables.read(parts.holdout.snapshot)",
            "sees the holdout and reads tables",
        ),
        (
            "tasks__train",
            "async def tune(platform, parts: 'Parts'):\n    for b in platform.tables.batches(last(parts)): ...",
            "sees the holdout and reads tables",
        ),
        ("tasks__train", "def tune(run):\n    return run.parts.holdout", "names the holdout"),
        (
            "tasks__report",
            (
                "def rows(platform, one):\n    return platform.tables.open(one)\n"
                "def page(platform, parts: Parts):\n    return rows(platform, parts.holdout.snapshot)"
            ),
            "tasks.report sees the holdout and reads tables",
        ),
    ],
)
def test_a_look_at_the_holdout_is_found(module: str, source: str, problem: str) -> None:
    found = looks_at_the_holdout(planted(**{module: source}))

    assert any(problem in one for one in found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "tasks__train",
            (
                "def describe(parts: Parts):\n    return parts.holdout.snapshot.rows\n"
                "def fit(platform, development):\n    return platform.tables.read(development.train.snapshot)"
            ),
        ),
        ("tasks__steps", "def evaluate(parts: Parts):\n    return look(parts.holdout)"),
        (
            "tasks__report",
            "def balance(parts: Mapping[str, Part]):\n    return [part.balance for part in parts]",
        ),
        (
            "tasks__evaluate",
            "def look(platform, holdout: Part):\n    return platform.tables.read(holdout.snapshot)",
        ),
    ],
)
def test_describing_the_holdout_is_let_pass(module: str, source: str) -> None:
    assert looks_at_the_holdout(planted(**{module: source})) == []
