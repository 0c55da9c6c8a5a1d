"""The architecture, held by reading the imports of every file."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "jaxpretrain"

# Layer by layer, from the bottom: a file imports its own layer's package and those before it.
LAYERS = [
    {
        "errors",
        "types",
        "chips",
        "hlo",
        "storage",
        "huge_pages",
        "compile_cache",
        "compiler",
        "__init__",
    },
    {"schema"},
    {"data", "models", "corruption", "losses"},
    {"objectives", "interop"},
    {"processes"},
    {"optim", "sharding", "trackers", "metrics", "preemption", "guard", "lease"},
    {"report"},
    {"state", "settings"},
    {"step", "config"},
    {"ablation"},
    {"balance"},
    {"evaluation"},
    {"checkpoint", "workdir"},
    {"assemble"},
    {"train", "plan", "reopen"},
    {"evaluate", "replay", "score", "export", "import_model", "pretrained"},
    {"gather"},
    {"ablate"},
    {"main"},
]
# Siblings of one layer that do not know each other.
STRANGERS = [("data", "models"), ("models", "data"), ("corruption", "models"), ("losses", "models")]


def unit(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node, node.module
        elif isinstance(node, ast.Import):
            for name in node.names:
                yield node, name.name


FILES = sorted(PACKAGE.rglob("*.py"))
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def test_every_file_has_its_layer():
    assert {unit(path) for path in FILES} == LEVEL.keys()


def test_imports_point_one_way():
    for path in FILES:
        here = unit(path)
        for _, module in imports(path):
            parts = module.split(".")
            if parts[0] != "jaxpretrain" or len(parts) < 2 or parts[1] == here:
                continue
            there = parts[1]
            assert LEVEL[there] <= LEVEL[here], f"{path.name} imports {module}"
            assert (here, there) not in STRANGERS, f"{path.name} imports {module}"


def test_only_the_commands_see_a_config_dict():
    allowed = {
        "config",
        "ablation",
        "assemble",
        "train",
        "evaluate",
        "plan",
        "ablate",
        "main",
        "reopen",
    }
    users = {unit(p) for p in FILES if any("ml_collections" in m for _, m in imports(p))}
    assert users <= allowed


def test_tensorflow_is_imported_in_one_place_inside_a_function():
    for path in FILES:
        top = ast.parse(path.read_text()).body
        for node, module in imports(path):
            if module.split(".")[0] in ("tensorflow", "tensorflow_datasets"):
                assert path.name in ("tensorflow_quietly.py", "sources_tfds.py"), path
                assert ast.dump(node) not in map(ast.dump, top), path


def test_flax_is_imported_by_the_models_only():
    users = {unit(p) for p in FILES if any(m.split(".")[0] == "flax" for _, m in imports(p))}
    assert users == {"models"}


def test_files_can_be_read_in_a_sitting():
    for path in FILES:
        assert len(path.read_text().splitlines()) <= 400, path


def test_the_command_line_starts_without_tensorflow_and_help_without_jax():
    code = (
        "import sys, jaxpretrain.main as m\n"
        "try:\n    m.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "assert 'jax' not in sys.modules, 'jax'\n"
        "import jaxpretrain.train, jaxpretrain.evaluate\n"
        "assert 'tensorflow' not in sys.modules, 'tensorflow'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent
    )
    assert done.returncode == 0, done.stderr
