"""What `import glyphlm` offers: every name loads, editors see it, and README's example runs from text to generated text."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import glyphlm
from glyphlm.corpus.phrasebook import phrases

ROOT = Path(__file__).parents[1]
PROMISED = """
Tokenizer TokenizerSettings build_tokenizer prepare TokenText Batches Substrate SubstrateConfig SubstrateSettings
build_substrate load_substrate GPT ModelConfig Fusion FusionConfig TrainSettings train Recipe GrowthRecipe load_recipe
load_run run_recipe run_growth fuse FusionSettings generate Sampling evaluate EvalSettings compare_items probe
write_report study Study import_checkpoint export_gpt_neox export_gguf push InputError
""".split()
# README's sizes -> those of a test; no font is needed.
SMALLER = {
    "8192": "1024", "2000": "4", "2048": "128", '"glyph", "n_embed": 256': '"token_bits", "n_embed": 16',
    '"d_model": 256, "n_layer": 4, "n_head": 4, "block_size": 256':
        '"d_model": 32, "n_layer": 1, "n_head": 2, "block_size": 32',
    '"steps"': '"device": "cpu", "precision": "fp32", "steps"', "max_new_tokens=100": "max_new_tokens=5",
}


@pytest.mark.parametrize("name", glyphlm.__all__)
def test_every_name_loads_and_has_a_docstring(name):
    assert inspect.getdoc(getattr(glyphlm, name))


def test_what_is_promised_is_there():
    assert {*PROMISED} <= {*glyphlm.__all__} <= {*dir(glyphlm)}
    with pytest.raises(AttributeError, match="no attribute 'tokeniser'"):
        glyphlm.tokeniser  # noqa: B018


def test_type_checkers_see_the_same_names_at_the_same_places():
    body = ast.parse(Path(glyphlm.__file__).read_text(encoding="utf-8")).body
    block = next(node for node in body if isinstance(node, ast.If))
    seen = {alias.asname: f"{node.module}.{alias.name}" for node in block.body for alias in node.names}
    assert seen == {name: f"glyphlm.{home}.{name}" for name, home in glyphlm._HOMES.items()}


def test_importing_it_loads_nothing_heavy():
    """`glyphlm --help` must not wait for torch."""
    code = "import sys, glyphlm; dir(glyphlm); print({'torch', 'transformers', 'numpy'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_the_example_of_the_readme_goes_from_text_to_generated_text(tmp_path, monkeypatch, capsys):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "train_recipe" in block)
    assert len(code.splitlines()) <= 15
    for was, now in SMALLER.items():
        assert was in code
        code = code.replace(was, now)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "mine.txt").write_text("\n\n".join(phrase.text for phrase in phrases()[:300]), encoding="utf-8")
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("Hello, мир! ")
