"""Without a recipe: build tokenizer, substrate and shards, train, save, load, generate.

python examples/from_objects.py TEXT [OUT]
"""

import sys
from pathlib import Path

import glyphlm
from glyphlm import ModelConfig, Sampling, SubstrateSettings, TokenizerSettings, TokenText, TrainSettings

text, out = sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else "runs/from_objects")
shape = ModelConfig(d_model=64, n_layer=2, n_head=2, block_size=64)
settings = TrainSettings(steps=100, batch_tokens=512, micro_batch_tokens=512, lr=4e-3)

tokenizer = glyphlm.build_tokenizer([text], TokenizerSettings(vocab_size=1024), out / "tokenizer")
glyphlm.build_substrate(tokenizer, SubstrateSettings(kind="random_bits", n_embed=32), out / "substrate")
glyphlm.prepare(tokenizer, [text], out / "shards", validation_share=0.02)

model = glyphlm.GPT(shape, glyphlm.load_substrate(out / "substrate", shape.d_model))
model.init_weights(seed=1)
batches = glyphlm.Batches([TokenText(out / "shards", "train")], [1.0], shape.block_size, batch_size=8, seed=1)
run = glyphlm.train(model, batches, settings, out / "run", tokenizer=tokenizer)

copy = glyphlm.load_run(run.save(out / "copy").folder)
print(copy.generate("The ", Sampling(max_new_tokens=20)))
for piece in copy.stream("The ", temperature=0, max_new_tokens=20):
    print(piece, end="", flush=True)
print()
