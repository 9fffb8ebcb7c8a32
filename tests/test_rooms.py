"""The rooms of stages/: one-way doors between them, and files that can be read."""

import ast
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from helpers.dag import ORDER, ROOMS, ROOT, imports, module_files, room_of

MODULES = module_files()
CODE = sorted(path for path in MODULES.values() if path.name != "__init__.py")
PYTHON = [
    path.relative_to(ROOT)
    for folder in ("stages", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
LONGEST_FILE, LONGEST_STAGE, WIDEST = 400, 120, 100


def lines(path: Path) -> list[str]:
    return (ROOT / path).read_text(encoding="utf-8").splitlines()


def test_the_folders_of_stages_are_the_rooms_and_each_says_what_is_in_it():
    folders = {path.name for path in (ROOT / "stages").iterdir() if (path / "__init__.py").exists()}
    assert folders == set(ROOMS)
    assert {path.stem for path in CODE if room_of(path) is None} == set(ORDER)
    for module, path in MODULES.items():
        if path.name == "__init__.py":
            text = ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8")))
            assert text and len(text) > 30, module


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_above_it_and_no_stage(room):
    above = set(ROOMS[: ROOMS.index(room) + 1])
    for path in (path for path in CODE if room_of(path) == room):
        rooms = {room_of(MODULES[module]) for module in imports(path)}
        if room == "tools":
            continue  # commands may use everything
        assert rooms <= above, f"{path} imports {sorted(map(str, rooms - above))}"


def test_only_seed_and_tools_look_into_chemistry_and_nothing_into_tools():
    for path in CODE:
        rooms = {room_of(MODULES[module]) for module in imports(path)}
        if "chemistry" in rooms:
            assert room_of(path) in ("chemistry", "tools") or path.stem == "seed", path
        if "tools" in rooms:
            assert room_of(path) == "tools", path


def test_no_file_imports_itself_through_others():
    graph = {path: {MODULES[module] for module in imports(path)} - {path} for path in CODE}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(map(str, error.args[1])))


def test_no_stage_imports_another():
    for stage in ORDER:
        stages = {MODULES[module] for module in imports(Path(f"stages/{stage}.py"))}
        assert not {path for path in stages if room_of(path) is None}, stage


def test_no_two_files_have_one_name():
    """A name means one thing: `facts.py` in two rooms would mean two."""
    names = [path.stem for path in CODE if room_of(path) != "tools"]
    assert not {name for name in names if names.count(name) > 1}


@pytest.mark.parametrize("path", PYTHON, ids=str)
def test_a_file_is_short_and_narrow(path):
    text = lines(path)
    longest = LONGEST_STAGE if path.parts[0] == "stages" and len(path.parts) == 2 else LONGEST_FILE
    assert len(text) <= longest
    assert [i for i, line in enumerate(text, 1) if len(line) > WIDEST] == []


@pytest.mark.parametrize("name, longest", [("README.md", 200), ("dvc.yaml", 220)])
def test_what_is_read_first_is_short(name, longest):
    assert len(lines(Path(name))) <= longest


def test_no_test_module_imports_another():
    for path in (path for path in PYTHON if path.parts[0] == "tests"):
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        names |= {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        assert not {name for name in names if name and name.startswith("test_")}, path


def imported_packages(path: Path) -> set[str]:
    """Top-level packages that a file imports, those of this project and of Python left out."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    top = {name.split(".")[0] for name in names}
    return top - set(sys.stdlib_module_names) - {"stages", "helpers"}


def test_every_imported_package_is_declared():
    """In pyproject.toml, by the name under which it is installed, also if others bring it along."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [name for names in project["optional-dependencies"].values() for name in names]
    declared = {
        name.partition("[")[0].partition("=")[0].lower().replace("_", "-")
        for name in [*project["dependencies"], *extras]
    }
    installed = packages_distributions()
    for path in (path for path in PYTHON if "benchmarks" not in path.parts):
        for package in imported_packages(path):
            names = {name.lower().replace("_", "-") for name in installed.get(package, [])}
            assert not names or names & declared, f"{path} imports {package}"
