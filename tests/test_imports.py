"""The packages import each other one way, also lazily and for types."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

SOURCE = ROOT / "src"
MODULES = {
    ".".join(file.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): file
    for file in SOURCE.glob("alexnet/**/*.py")
}
PACKAGES = ("results", "training", "parallel", "data", "nets")
# What each package may import of the others.
ALLOWED = {
    "nets": set(),
    "parallel": {"nets"},
    "data": set(),
    "training": {"parallel", "data", "nets"},
    "results": {"training", "parallel", "data", "nets"},
}


def list_imports(file: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


def build_graph() -> dict[str, set[str]]:
    graph = {}
    for name, file in MODULES.items():
        graph[name] = {target for target in list_imports(file) if target in MODULES} - {name}
    return graph


def find_cycle(graph: dict[str, set[str]]) -> list[str] | None:
    """Some cycle of the graph, by depth-first search."""
    finished: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str] | None:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in finished:
            return None
        for target in sorted(graph[name]):
            cycle = visit(target, [*path, name])
            if cycle:
                return cycle
        finished.add(name)
        return None

    for name in sorted(graph):
        cycle = visit(name, [])
        if cycle:
            return cycle
    return None


def test_a_cycle_would_be_found():
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_no_modules_import_each_other():
    assert find_cycle(build_graph()) is None


def test_nothing_imports_the_command_line():
    assert [name for name, targets in build_graph().items() if "alexnet.cli" in targets] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_in_one_direction(package):
    forbidden = set(PACKAGES) - ALLOWED[package] - {package}
    for name, targets in build_graph().items():
        if name.startswith(f"alexnet.{package}"):
            found = {target for target in targets if target.split(".")[1] in forbidden}
            assert not found, f"{name} imports {found}"


def test_networks_know_no_lightning_hydra_or_ranks():
    for name, file in MODULES.items():
        if name.startswith("alexnet.nets"):
            for target in list_imports(file):
                assert not target.startswith(("lightning", "hydra", "omegaconf")), name
                assert not target.startswith("torch.distributed"), name
