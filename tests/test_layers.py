"""Dependencies point down: what a package may import, kept true."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "lors_cli"
# From the top to the bottom; a package imports only from lines below its own, or from its own line's package.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"search"},
    {"pipeline"},
    {"tools"},
    {"stages"},
    {"reporting", "benchmark"},
    {"run"},
    {"training", "sequential"},
    {"config"},
    {"evaluation"},
    {"api", "peft"},
    {"models"},
    {"data"},
    {"artifacts", "stopping"},
    {"pruning", "adapters"},
    {"kernels"},
    {"quantization"},
    {"numerics"},
    {"sparsity", "console", "processes", "offline", "options", "yaml12"},
    {"errors", "interrupts", "native", "progress_bar"},
]
NUMERICS = {"pruning", "adapters", "kernels", "quantization", "sparsity"}


def imports(path: Path) -> set[str]:
    """The parts of lors_cli that a file imports."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "lors_cli":
            names = [node.module] if "." in node.module else [f"lors_cli.{alias.name}" for alias in node.names]
            parts |= {name.split(".")[1] for name in names}
    return parts - {"__version__"}


def test_imports_point_down() -> None:
    level = {name: depth for depth, layer in enumerate(LAYERS) for name in layer}
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        for imported in imports(path) - {part}:
            assert level[part] < level[imported], f"{path} imports {imported}"


def test_numerics_know_no_files_and_print_nothing() -> None:
    for path in (p for part in NUMERICS for p in (PACKAGE / part).rglob("*.py")):
        assert imports(path) <= {*NUMERICS, "errors", "options", "native"}, path
        assert not {"pathlib", "os", "rich", "transformers"} & {
            name.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            for name in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        }, path


def test_numerics_files_stay_small() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 300, path
