"""A folder of text -> a frozen model and its trainable twin -> which of them needs fewer bits per byte.

python examples/own_text.py TEXT [OUT]    (embedded:en,ru is a phrase book that comes with glyphlm)
"""

import sys
from pathlib import Path

import glyphlm

text, out = sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else "runs/own_text")
SHAPE = {"d_model": 128, "n_layer": 2, "n_head": 2, "block_size": 64}
TRAIN = {"steps": 200, "batch_tokens": 1024, "micro_batch_tokens": 1024, "lr": 4e-3, "validate_every": 100}
ARMS = {
    "frozen": {"kind": "token_bits", "n_embed": 16},  # kind glyph draws pictures, which needs a font
    "twin": {"kind": "learned", "n_embed": 128, "trainable": True},
}

for name, substrate in ARMS.items():
    recipe = {
        "tokenizer": {"layout": "compact", "vocab_size": 1024},
        "substrate": substrate,
        "model": SHAPE,
        "data": [{"text": [text]}],
        "prompts": ["The "],
        "train": TRAIN,
    }
    run = glyphlm.train_recipe(recipe, out / name)
    bits = run.summary["bits_per_byte"]["validation"]
    print(f"{name}: {bits:.3f} bits per byte, {run.generate('The ', max_new_tokens=20)!r}")
print(glyphlm.write_report([out / name for name in ARMS], out / "report.html", "My text"))
