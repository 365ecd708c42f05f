"""The house: which package may import which, who owns which library, and what is copied into run folders."""

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import glyphlm

PACKAGE = Path(__file__).parents[1] / "glyphlm"
# In the order of the data; a package imports only itself and packages to the left.
PACKAGES = """
base modeling corpus tokenizer substrate data training runs composition experiments planning evaluation analysis pages
interop studies cli
""".split()
# A library is used in one place, so that it can be replaced there.
OWNERS = {
    "datasets": {"corpus.reading"},
    "datatrove": {"base.jobs"},
    "gguf": {"interop.gguf"},
    "huggingface_hub": {"base.hub", "runs.card"},
    "jinja2": {"pages.render"},
    "jsonargparse": {"cli.parser"},
    "matplotlib": {"analysis.drawing", "analysis.layer_plots", "analysis.plots"},
    "babel": {"corpus.cldr"},
    "freetype": {"substrate.fonts"},
    "mpmath": {"evaluation.stats"},
    "peft": {"runs.adapters"},
    "PIL": {"substrate.fonts", "substrate.glyphs"},
    "pyarrow": {"corpus.reading"},
    "regex": {"tokenizer.ngrams"},
    "rich": {"base.progress", "cli.conversation"},
    "sacrebleu": {"evaluation.answers"},
    "safetensors": {"base.tensors", "modeling.hf"},
    "pydantic": {"interop.openai_requests"},
    "sklearn": {"analysis.probes"},
    "starlette": {"interop.http_server", "interop.openai_api"},
    "tokenizers": {"tokenizer.build", "tokenizer.layouts", "tokenizer.piece_encoder", "tokenizer.spelling",
                   "tokenizer.tokenizer"},
    "transformers": {"composition.dock", "evaluation.model", "modeling.bytecover", "modeling.bytefusion", "modeling.hf",
                     "runs.chat", "runs.folder", "runs.foreign"},
    "uvicorn": {"interop.http_server"},
    "wrapt": {"__init__"},
    "yaml": {"base.records"},
}
# Copied into every run folder, where glyphlm is not installed.
SHIPPED = {f"modeling.{name}" for name in
           ("assembly", "attention", "bytecover", "bytefusion", "config", "decoding_step", "fusion", "heads", "hf", "mixing",
            "model", "stitching", "substrate", "together")}
MODULES = sorted(".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py"))


def read(module: str) -> str:
    """The source of a module, named from inside glyphlm."""
    return PACKAGE.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8")


@cache
def imports(module: str) -> set[str]:
    """Every module that a file imports, at its top or inside functions; ours as `glyphlm.x.y`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(read(module))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = f"glyphlm.{module.rpartition('.')[0]}.{node.module}" if node.level else node.module
            names = {f"{start}.{alias.name}" for alias in node.names}
            found |= {name for name in names if name.removeprefix("glyphlm.") in MODULES} or {start}
    return found


def ours(module: str) -> set[str]:
    """What a file imports of glyphlm, named from inside it."""
    return {name.removeprefix("glyphlm.") for name in imports(module) if name.startswith("glyphlm.")}


def test_every_file_is_in_a_package():
    assert {module.split(".")[0] for module in MODULES} == {*PACKAGES, "__init__", "__main__"}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_packages_before_it(package):
    allowed = PACKAGES[: PACKAGES.index(package) + 1]
    upward = {(module, name) for module in MODULES if module.startswith(f"{package}.") for name in ours(module)
              if name.split(".")[0] not in allowed}
    assert not upward


def test_no_module_imports_itself_in_a_circle():
    list(TopologicalSorter({module: ours(module) for module in MODULES}).static_order())  # raises CycleError


@pytest.mark.parametrize("package", PACKAGES)
def test_an_init_file_holds_a_docstring_alone(package):
    """A package's __init__ holds a docstring, so that importing one file of it loads nothing more."""
    body = ast.parse(read(f"{package}.__init__")).body
    assert [type(node) for node in body] == [ast.Expr]


@pytest.mark.parametrize("library", OWNERS)
def test_a_library_is_imported_by_its_owners_alone(library):
    users = {module for module in MODULES if library in {name.split(".")[0] for name in imports(module)}}
    assert users == OWNERS[library]


@pytest.mark.parametrize("module", sorted(SHIPPED))
def test_shipped_files_need_only_torch_transformers_and_each_other(module):
    allowed = {"torch", "transformers", "safetensors", "glyphlm"}  # transformers need safetensors
    allowed |= {"bisect", "collections", "contextlib", "copy", "dataclasses", "hashlib", "heapq", "math", "pathlib", "types"}
    allowed |= {"typing", "zlib"}
    assert {name.split(".")[0] for name in imports(module)} <= allowed
    assert ours(module) <= SHIPPED
    assert {m for m in MODULES if m.startswith("modeling.") and not m.endswith("__init__")} == SHIPPED


def test_no_pickle_anywhere():
    """Foreign files are read in one place, where nothing of them is run."""
    sources = {module: read(module) for module in MODULES}
    safe = 'torch.load(path, map_location="cpu", weights_only=True)'
    assert sources["base.tensors"].count(safe) == 1
    sources["base.tensors"] = sources["base.tensors"].replace(safe, "")
    assert not [name for name, text in sources.items() if "pickle" in text or "torch.load(" in text or "torch.save(" in text]


def test_public_names_stay_what_they_are_when_asked_for_twice():
    assert all(getattr(glyphlm, name) is getattr(glyphlm, name) for name in glyphlm.__all__)
    assert not {*glyphlm.__all__} & {*PACKAGES}  # a package of the same name would take its place
