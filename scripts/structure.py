"""Print the size and the shape of the package: `python scripts/structure.py [REVISION ..]`, or of the working tree."""

import ast
import io
import re
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from statistics import median, quantiles

ROOT = Path(__file__).resolve().parents[1]
ORDER = re.compile(r'^PACKAGES = """(.*?)"""', re.DOTALL | re.MULTILINE)


def sources(revision: str | None) -> dict[str, str]:
    """The text of each Python file under glyphlm/, and of the test that holds the order of packages, by path."""
    if revision is None:
        paths = [*ROOT.glob("glyphlm/**/*.py"), ROOT / "tests/test_structure.py"]
        return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    command = ["git", "-C", ROOT, "archive", revision, "glyphlm", "tests/test_structure.py"]
    with tarfile.open(fileobj=io.BytesIO(subprocess.run(command, capture_output=True, check=True).stdout)) as archive:
        files = [member for member in archive if member.name.endswith(".py")]
        return {member.name: archive.extractfile(member).read().decode() for member in files}


def imports(module: str, tree: ast.AST, modules: set[str]) -> set[str]:
    """The modules of the package that a module imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")[: -node.level] if node.level else []
            start = ".".join([*parts, *filter(None, [node.module])])
            found |= {start, *(f"{start}.{alias.name}" for alias in node.names)}
    return found & modules


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """What can be reached from a module by following imports, the module itself only through a cycle."""
    seen, waiting = set(), [*graph[start]]
    while waiting:
        if (module := waiting.pop()) not in seen:
            seen.add(module)
            waiting += graph[module]
    return seen


def describe(revision: str | None) -> None:
    files = sources(revision)
    order = ORDER.search(files.pop("tests/test_structure.py"))
    packages = order[1].split() if order else []
    trees = {path.removesuffix(".py").replace("/", "."): ast.parse(text) for path, text in files.items()}
    graph = {module: imports(module, tree, {*trees}) - {module} for module, tree in trees.items()}
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    lengths = [n.end_lineno - n.lineno + 1 for tree in trees.values() for n in ast.walk(tree) if isinstance(n, kinds)]
    lines = {path: text.count("\n") for path, text in files.items()}
    folders = Counter(str(Path(path).parent) for path in files if not path.endswith("__init__.py"))
    place = {f"glyphlm.{name}": index for index, name in enumerate(packages)}
    rank = {module: place.get(".".join(module.split(".")[:2])) for module in trees}
    upward = [f"{a} -> {b}" for a in graph for b in graph[a] if None not in (rank[a], rank[b]) and rank[a] < rank[b]]
    circular = sorted(module for module in graph if module in reachable(graph, module))
    print(f"{revision or 'working tree'}: {len(files)} files, {sum(lines.values()):,} lines, in {len(folders)} folders")
    longest = max(lines, key=lines.get)
    print(f"  lines of a file: median {median(lines.values()):.0f}, longest {lines[longest]} ({longest})")
    print(f"  functions: {len(lengths):,}; lines: median {median(lengths):.0f}, p90 {quantiles(lengths, n=10)[-1]:.0f}, "
          f"longest {max(lengths)}")
    print(f"  files of a folder: {', '.join(f'{name} {count}' for name, count in sorted(folders.items()))}")
    print(f"  upward imports: {len(upward) if packages else 'one flat package'}", *upward)
    print(f"  modules in import cycles: {len(circular)}", *circular)


for revision in sys.argv[1:] or [None]:
    describe(revision)
