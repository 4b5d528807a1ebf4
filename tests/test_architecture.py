"""The order of the packages: each imports only from those before it, and the core does without Lightning."""

import ast
import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "gradsteer"
SHARED = {"version", "records", "locks", "progress", "provenance", "config_files", "nearest", "options"}
ENTRANCES = {"__init__", "__main__"}  # they hand on to whatever a command or a name needs
ORDER = [
    "data", "models", "vectors", "steering", "attribution", "generation", "evaluation", "reports", "forecast", "judges",
    "discovery", "trainer", "cli", "export", "demo",
]  # fmt: skip


def rank(parts: tuple[str, ...]) -> int:
    """A module's place in the order; -1 for what all share. `main` itself imports a command when it is called."""
    return -1 if parts[0] in SHARED else ORDER.index("cli" if parts[0] in ENTRANCES else parts[0])


def test_packages_import_only_from_those_before_them():
    flat = {path.stem for path in PACKAGE.glob("*.py")}
    assert flat == SHARED | ENTRANCES
    upward = []
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.relative_to(PACKAGE).with_suffix("").parts
        if module[0] in ENTRANCES:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                parts = tuple(name.split(".")[1:])
                if not name.startswith("gradsteer."):
                    continue
                if rank(parts) > rank(module):
                    upward.append(f"{'/'.join(module)} imports {name}")
                if module[0] == "trainer" and {module[1], *parts[1:2]} == {"modules", "callbacks"}:
                    upward.append(f"{'/'.join(module)} imports {name}: modules and callbacks share the session only")
    assert not upward, "\n".join(upward)


def test_the_core_does_without_lightning():
    core = ("vectors", "steering", "attribution")
    modules = [f"gradsteer.{name}.{path.stem}" for name in core for path in (PACKAGE / name).glob("[a-z]*.py")]
    code = f"import {', '.join(modules)}, sys; sys.exit(any('lightning' in name for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_walks_of_the_documents_name_files_that_are_there_and_few_of_them():
    walks = re.split(r"^## ", (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8"), flags=re.M)
    known = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")}
    for walk in walks[1:3]:
        named = set(re.findall(r"`((?:\w+/)+\w+\.py)`", walk))
        named = {name if name in known else f"trainer/{name}" for name in named}
        assert named <= known
        assert 10 < len(named) <= 20


def test_the_table_of_what_works_names_tests_that_are_there():
    table = (PACKAGE.parent / "docs" / "compatibility.md").read_text(encoding="utf-8")
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", table)
    assert len(named) > 50
    assert [name for name in named if f"def {name}(" not in tests] == []
