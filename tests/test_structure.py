"""The house: which file may import which, who owns which library, and what travels with checkpoints."""

import ast
from pathlib import Path

import pytest

import glyphlm

PACKAGE = Path(__file__).parents[1] / "glyphlm"
# The way of the data; each file imports only files above it.
ORDER = """
errors outputs progress processes cluster tensors hub stats answers publishedresults
cldr phrasebook corpus taskfiles items openqa tasks sft ngrams ngramfile ngramcount
layouts bvv241 spelling pieces tokenizer vocabulary preparation
fonts glyphs model mixing together fusion flops codes substrate growth hiddencache fusionsettings dataset
parallel devices loss optim bits checkpoint trackers trainsettings machines memory objective training pace
hf runfolder card fusing generation recipe stages assembly arm staging planmodel plan plantext
importfiles importblock importmap importmodel importing exporting serving ggufvocab gguffile
examinee decoding likelihood sampled itemlog examination resulttext evaluation
rundata growthview benchview pairview plots inspection comparison separability probetexts probes report quickstart
parsing workflow claims studyplan studyresults studying textverbs modelverbs shareverbs useverbs cli __main__
""".split()
# A library is used in one place, so that it can be replaced there.
OWNERS = {
    "babel": {"cldr"},
    "datasets": {"corpus", "taskfiles"},
    "datatrove": {"cluster"},
    "fontTools": {"fonts"},
    "gguf": {"gguffile"},
    "huggingface_hub": {"hub", "card"},
    "jinja2": {"report"},
    "jsonargparse": {"parsing"},
    "matplotlib": {"plots"},
    "peft": {"growth"},
    "PIL": {"fonts", "glyphs"},
    "pyarrow": {"corpus"},
    "regex": {"ngrams"},
    "rich": {"progress"},
    "sacrebleu": {"answers"},
    "safetensors": {"tensors"},
    "scipy": {"stats"},
    "tokenizers": {"layouts", "bvv241", "spelling", "pieces", "tokenizer", "vocabulary"},
    "transformers": {"hf", "runfolder", "examinee"},
    "wrapt": {"__init__"},
    "yaml": {"recipe"},
}
SHIPPED = {"model", "mixing", "together", "fusion", "hf"}  # copied into every run folder, where glyphlm is not installed


def imports(name: str) -> set[str]:
    """Every module that a file imports, at its top or inside functions; ours as `glyphlm.x`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            found.add(f"glyphlm.{node.module}")
        elif isinstance(node, ast.ImportFrom) and node.module == "glyphlm":
            found |= {f"glyphlm.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return found


def test_every_file_has_its_place():
    assert sorted(path.stem for path in PACKAGE.glob("*.py")) == sorted([*ORDER, "__init__"])


@pytest.mark.parametrize("name", ORDER)
def test_a_file_imports_only_files_above_it(name):
    ours = {module.removeprefix("glyphlm.") for module in imports(name) if module.startswith("glyphlm.")}
    assert ours <= set(ORDER[: ORDER.index(name)])


@pytest.mark.parametrize("library", OWNERS)
def test_a_library_is_imported_by_its_owners_alone(library):
    users = {name for name in [*ORDER, "__init__"] if library in {module.split(".")[0] for module in imports(name)}}
    assert users == OWNERS[library]


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_shipped_files_need_only_torch_transformers_and_each_other(name):
    allowed = {"torch", "transformers", "glyphlm", "collections", "dataclasses", "typing", "copy", "math", "zlib"}
    assert {module.split(".")[0] for module in imports(name)} <= allowed
    assert {module for module in imports(name) if module.startswith("glyphlm.")} <= {f"glyphlm.{n}" for n in SHIPPED}


def test_no_pickle_anywhere():
    """Foreign files are read in one place, where nothing of them is run."""
    sources = {path.stem: path.read_text(encoding="utf-8") for path in PACKAGE.glob("*.py")}
    for safe in (', map_location="cpu", weights_only=True)', ", allow_pickle=False)"):
        assert sources["tensors"].count(safe) == 1
    sources["tensors"] = sources["tensors"].replace("torch.load(path, map", "").replace(", allow_pickle=False)", "")
    assert not [name for name, text in sources.items() if "pickle" in text or "torch.load(" in text or "torch.save(" in text]


def test_public_names_stay_what_they_are_when_asked_for_twice():
    assert all(getattr(glyphlm, name) is getattr(glyphlm, name) for name in glyphlm.__all__)
    assert not {name for name in glyphlm.__all__ if name in ORDER}  # a module of the same name would take its place
