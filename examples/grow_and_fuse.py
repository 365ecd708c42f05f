"""Models out of models: grow one by a block, train two experts over one vocabulary, fuse them, compare.

python examples/grow_and_fuse.py [OUT]
"""

import sys
from pathlib import Path

import glyphlm
from glyphlm import FusionSettings, SubstrateSettings, TokenizerSettings

out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/grow_and_fuse")
tokenizer = glyphlm.build_tokenizer(["embedded:en,ru"], TokenizerSettings(vocab_size=1024), out / "tokenizer")
glyphlm.build_substrate(tokenizer, SubstrateSettings(kind="token_bits", n_embed=16), out / "substrate")
recipe = {
    "tokenizer": {"path": str(out / "tokenizer")},
    "substrate": {"path": str(out / "substrate")},
    "model": {"d_model": 64, "n_layer": 1, "n_head": 2, "block_size": 64},
    "train": {"steps": 100, "batch_tokens": 512, "micro_batch_tokens": 512, "lr": 4e-3},
}

experts = [glyphlm.train_recipe(recipe | {"data": [{"text": f"embedded:{lang}"}]}, out / lang) for lang in ("en", "ru")]
grown = glyphlm.train_recipe(
    recipe | {"data": [{"text": "embedded:en"}], "stages": [{"layers": 1}],
              "growth": {"base": str(experts[0].folder), "start": "zero"}},
    out / "grown",
)
names = [str(expert.folder) for expert in experts]
glyphlm.fuse(FusionSettings(names, method="posterior"), out / "fused")

runs = [*names, str(grown.folder), out / "fused"]
tasks = ["bpb=embedded:en,validation", "bpb=embedded:ru,validation"]
for row in glyphlm.evaluate(runs, tasks).rows:
    print(f"{Path(row.run).name:8} {row.source:24} {row.value:.3f} bits per byte")
