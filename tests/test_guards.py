"""House rules that no linter knows: sizes, names, imports, README, what files may name."""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tokensparse

ROOT = Path(__file__).resolve().parents[1]
CODE = ("tokensparse", "tools", "tests", "configs", "docs")
TEXT = {".py", ".md", ".txt", ".toml", ".yml", ".yaml", ".json", ".cfg", ".sh", ""}
SKIPPED = {"work_dirs", "data", "build", "__pycache__"}
DENSE = {"mmcv", "mmdet", "mmseg"}
MAX_LINES, MAX_FUNCTION, MAX_ARGUMENTS = 400, 60, 25


def repository() -> Iterator[Path]:
    """Files of the repository; what git would ignore is left out."""
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        hidden = any(p.startswith(".") and p not in (".ci", ".gitignore") for p in parts)
        if hidden or any(p in SKIPPED or p.endswith(".egg-info") for p in parts):
            continue
        if path.is_file() and path.suffix in TEXT:
            yield path


def sources() -> list[Path]:
    found = [p for p in repository() if p.suffix == ".py"]
    return [p for p in found if p.relative_to(ROOT).parts[0] in CODE]


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_guards_see_the_code() -> None:
    seen = {named(p) for p in sources()}
    assert {"tokensparse/tokens.py", "tools/train.py", "configs/sparseswin_cls.py"} <= seen
    assert {"Makefile", "LICENSE", "README.md", ".ci/run"} <= {named(p) for p in repository()}


def test_imports_point_one_way() -> None:
    program = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    assert program, "import-linter is not installed: pip install -r requirements/tests.txt"
    run = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_no_file_is_too_long() -> None:
    long = {named(p): n for p in sources() if (n := len(p.read_text().splitlines())) > MAX_LINES}
    assert not long, f"over {MAX_LINES} lines: {long}"


def test_no_function_is_too_long() -> None:
    long = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION:
                    long.append(f"{named(path)}:{node.lineno} {node.name}: {lines} lines")
    assert not long, "\n".join(long)


def test_no_constructor_takes_too_much() -> None:
    wide = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                a = node.args
                count = len(a.posonlyargs) + len(a.args) + len(a.kwonlyargs) - 1
                if count > MAX_ARGUMENTS:
                    wide.append(f"{named(path)}:{node.lineno}: {count} arguments")
    assert not wide, "\n".join(wide)


def test_no_file_is_a_drawer() -> None:
    banned = re.compile(r"(^|_)(utils?|helpers?|misc|common|base2)$")
    drawers = [named(p) for p in repository() if banned.search(p.stem)]
    folders = [named(p.parent) for p in repository() if banned.search(p.parent.name)]
    assert not drawers + folders


def imports_when_loaded(node: ast.AST) -> Iterator[str]:
    """Modules imported while a file is loaded: not those inside functions or TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module and not child.level:
            yield child.module
        yield from imports_when_loaded(child)


def test_only_dense_imports_mm_packages() -> None:
    guilty = [
        f"{named(path)}: {module}"
        for path in sources()
        if named(path).startswith("tokensparse/")
        and not named(path).startswith("tokensparse/dense")
        for module in imports_when_loaded(ast.parse(path.read_text()))
        if module.split(".")[0] in DENSE
    ]
    assert not guilty, guilty


IMPORT_ALONE = """
import importlib.abc, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"mmcv", "mmdet", "mmseg"}:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocked())
import tokensparse
from tokensparse.registry import DATASETS, METRICS, MODELS, RECOVERIES, REDUCERS

models = {"VisionTransformer", "SwinTransformer", "SparseSwin", "ImageClassifier", "LinearHead"}
reducers = {"TopK", "EViT", "ToMe", "SparTa", "Windowed"}
recoveries = {"Scatter", "AttentionRestore", "KNNRestore", "LinearRestore"}
for registry, names in ((MODELS, models), (REDUCERS, reducers), (RECOVERIES, recoveries)):
    missing = names - set(registry.module_dict)
    assert not missing, f"{registry.name}: {missing} not registered by import tokensparse"
assert DATASETS.module_dict and METRICS.module_dict
assert not {"mmcv", "mmdet", "mmseg"} & set(sys.modules)
"""


def test_import_needs_no_mm_package_and_registers_everything() -> None:
    run = subprocess.run([sys.executable, "-c", IMPORT_ALONE], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_without_mmengine_one_error_names_the_remedy() -> None:
    alone = IMPORT_ALONE.split("import tokensparse")[0].replace('"mmcv",', '"mmcv", "mmengine",')
    code = alone + "import tokensparse"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: tokensparse needs mmengine: `pip install onedl-mmengine`")


def readme() -> str:
    return (ROOT / "README.md").read_text()


def test_readme_names_make_targets_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][\w-]*):(?!=)", makefile, re.MULTILINE))
    asked = set(re.findall(r"(?:^|`)make ([a-z]\w*)", readme(), re.MULTILINE))
    assert {"train", "test"} <= asked <= targets
    assert "make test" in (ROOT / ".ci/run").read_text()


def test_readme_names_files_that_exist() -> None:
    pattern = r"(?:tokensparse|configs|tools|tests|docs|requirements)/[\w./-]*"
    places = {p.rstrip(".") for p in re.findall(pattern, readme())}
    places |= set(re.findall(r"\]\(([^)#:]+)\)", readme()))
    assert len(places) > 10
    missing = sorted(p for p in places if not (ROOT / p).exists())
    assert not missing


@pytest.mark.parametrize("script", sorted(p.name for p in (ROOT / "tools").glob("*.py")))
def test_tools_explain_themselves(script: str) -> None:
    run = subprocess.run(
        [sys.executable, f"tools/{script}", "--help"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "usage:" in run.stdout


def test_readme_commands_use_options_that_exist() -> None:
    for script, rest in re.findall(r"python (tools/\w+\.py)(.*)", readme()):
        source = (ROOT / script).read_text()
        for option in re.findall(r"(--[a-z][\w-]*)", rest):
            assert f'"{option}"' in source, f"{script} has no {option}"


def test_readme_python_compiles_and_names_what_exists() -> None:
    blocks = re.findall(r"```python\n(.*?)```", readme(), re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "tokensparse":
                assert hasattr(tokensparse, node.attr), f"tokensparse.{node.attr} does not exist"


def test_one_version() -> None:
    assert f'version="{tokensparse.__version__}"' in (ROOT / "setup.py").read_text()


def requirement_names(name: str) -> set[str]:
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    found = [re.match(r"[A-Za-z][\w.-]*", line) for line in lines if not line.startswith("#")]
    return {m.group().lower().replace("_", "-") for m in found if m}


def test_every_requirement_is_pinned() -> None:
    pinned = requirement_names("constraints")
    files = [p.stem for p in (ROOT / "requirements").glob("*.txt") if p.stem != "constraints"]
    assert {"runtime", "engine", "mm", "build", "demo", "tests"} <= set(files)
    loose = {name: sorted(requirement_names(name) - pinned) for name in files}
    assert not any(loose.values()), loose


def test_extras_force_no_second_mm_distribution() -> None:
    setup = (ROOT / "setup.py").read_text()
    read = set(re.findall(r'"(\w+)"', " ".join(re.findall(r"requirements\((.*?)\)", setup))))
    assert {"runtime", "det", "seg", "demo", "tests"} <= read
    for name in read - {""}:
        if (ROOT / "requirements" / f"{name}.txt").exists():
            doubled = {r for r in requirement_names(name) if re.match(r"(onedl-)?mm", r)}
            assert not doubled, f"requirements/{name}.txt: {doubled}"


HOSTS = "|".join([r"pypi\.", r"pythonhosted\.", r"anaconda\.", r"download\.pytorch"])
FOLDERS = "|".join(["home", "root", "work", "Users", "tmp", "opt", "mnt", "srv", "scratch"])
REGISTRY = re.compile(rf"\b(?:{HOSTS})|/simple/|index-url|find-links")
ABSOLUTE = re.compile(rf"(?<![\w.~$)}}/-])/(?:{FOLDERS})/[\w.]")


def test_the_patterns_find_what_they_should() -> None:
    assert REGISTRY.search("see https://pypi.example/torch")
    assert ABSOLUTE.search("cd /home/someone/data")
    assert not ABSOLUTE.search("path/to/work/here, ./tmp/x, $HOME/work/y")


def test_nothing_names_a_machine_or_a_package_registry() -> None:
    guilty = []
    for path in repository():
        if path.resolve() == Path(__file__).resolve():
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if REGISTRY.search(line) or ABSOLUTE.search(line):
                guilty.append(f"{named(path)}:{number}: {line.strip()[:100]}")
    assert not guilty, "\n".join(guilty)
