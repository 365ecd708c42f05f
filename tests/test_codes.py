"""What codes hold: principal components, random codes without collisions, affine maps of full rank, tables of others."""

import argparse
import math

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glyphlm.base.errors import InputError
from glyphlm.modeling.substrate import SubstrateConfig
from glyphlm.substrate import codes
from glyphlm.substrate.codes import (
    all_codes,
    are_independent,
    centred,
    check_tensors,
    expected_shapes,
    fingerprint,
    first_equal,
    orthonormal_rows,
    principal_components,
    put_id_bits,
    random_affine,
    random_bits,
    read_table,
    rule_tensors,
    scale_table,
    shuffled_ids,
)

RULES = {
    "token_bits": SubstrateConfig(300, 16, "token_bits"),
    "shuffled": SubstrateConfig(300, 16, "token_bits", shuffle_seed=3),
    "affine": SubstrateConfig(300, 16, "affine_bits", seed=2),
    "affine, shuffled": SubstrateConfig(300, 12, "affine_bits", scale="none", seed=2, shuffle_seed=3),
}


def bits(rows, columns, seed=1):
    """Random bits whose columns differ in how often they are set, as pixels do."""
    return (np.random.default_rng(seed).random((rows, columns)) < np.linspace(0.05, 0.95, columns)).astype(np.uint8)


# Principal components


@pytest.mark.parametrize(("rows", "pixels"), [(40, 100), (300, 64)])
@pytest.mark.parametrize("at_once", [7, 4096])
def test_principal_components_equal_those_of_a_plain_svd(rows, pixels, at_once, monkeypatch):
    monkeypatch.setattr(codes, "ROWS", at_once)
    found = principal_components(bits(rows, pixels), 12).numpy()
    centre = bits(rows, pixels) - bits(rows, pixels).mean(0)
    left, sizes, _ = np.linalg.svd(centre, full_matrices=False)
    expected = left[:, :12] * sizes[:12]
    signs = np.sign((found * expected).sum(0))
    np.testing.assert_allclose(found * signs, expected, atol=1e-4)


def test_principal_components_are_uncorrelated_and_sorted_by_size():
    found = principal_components(bits(200, 80), 20).double()
    together = found.T @ found
    sizes = together.diagonal()
    assert (together - sizes.diag()).abs().max() < 1e-3 and torch.equal(sizes, sizes.sort(descending=True).values)


def test_all_components_keep_all_distances():
    found = principal_components(bits(30, 50), 29)
    torch.testing.assert_close(torch.pdist(found), torch.pdist(torch.from_numpy(bits(30, 50)).float()))


def test_the_sign_of_a_component_does_not_depend_on_the_order_of_rows():
    turned = principal_components(bits(100, 40)[::-1].copy(), 6)
    torch.testing.assert_close(turned, principal_components(bits(100, 40), 6).flip(0))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=12, max_size=60), st.integers(1, 20))
def test_equal_rows_get_equal_bytes_and_others_do_not(picks, at_once):
    pictures = bits(10, 64)[picks]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codes, "ROWS", at_once)
        found = principal_components(pictures, 12).numpy()
        scale_table(torch.from_numpy(found), "l2")
    assert first_equal(found).tolist() == [picks.index(pick) for pick in picks]


def test_centred_pixels_keep_all_products_and_stand_in_the_order_asked_for():
    order = np.random.default_rng(2).permutation(64)
    found = centred(bits(50, 64), order).numpy()
    expected = bits(50, 64) - bits(50, 64).mean(0)
    np.testing.assert_allclose(found, expected[:, order], atol=1e-6)


# Random codes


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 700), st.integers(0, 40), st.integers(0, 99))
def test_random_bits_never_collide(vocab_size, spare, seed):
    places = max(1, (vocab_size - 1).bit_length())
    found = random_bits(vocab_size, places + spare, places, seed)
    assert found.shape == (vocab_size, places + spare) and set(np.unique(found)) <= {0, 1}
    assert len(np.unique(found, axis=0)) == vocab_size


def test_random_bits_are_even_in_every_column_and_depend_on_their_seed():
    found = random_bits(4096, 64, 12, 5)
    assert abs(found.mean(0) - 0.5).max() < 0.04
    assert np.array_equal(found, random_bits(4096, 64, 12, 5)) and not np.array_equal(found, random_bits(4096, 64, 12, 6))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(0, 12), st.integers(0, 999))
def test_affine_maps_keep_all_ids_apart(places, spare, seed):
    affine_NE, offset_E = (tensor.numpy() for tensor in random_affine(places, places + spare, seed))
    digits = np.arange(1 << places)[:, None] >> np.arange(places) & 1
    assert len(np.unique((digits @ affine_NE + offset_E) % 2, axis=0)) == 1 << places


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 999))
def test_independence_is_that_of_sums_modulo_2(rows, columns, seed):
    matrix = np.random.default_rng(seed).integers(0, 2, (rows, columns), np.uint8)
    choices_CR = (np.arange(1, 1 << rows)[:, None] >> np.arange(rows) & 1).astype(bool)
    assert are_independent(matrix) == all(np.bitwise_xor.reduce(matrix[chosen]).any() for chosen in choices_CR)


def test_a_shuffle_is_a_permutation_of_its_seed():
    found = shuffled_ids(1000, 1)
    assert found.dtype == torch.int32 and torch.equal(found.sort().values, torch.arange(1000, dtype=torch.int32))
    assert torch.equal(found, shuffled_ids(1000, 1)) and not torch.equal(found, shuffled_ids(1000, 2))


@pytest.mark.parametrize(("n_embed", "d_model"), [(8, 8), (5, 32), (1, 3)])
def test_the_lift_has_orthonormal_rows_of_its_seed(n_embed, d_model):
    found = orthonormal_rows(n_embed, d_model, 1)
    torch.testing.assert_close(found @ found.T, torch.eye(n_embed), atol=1e-6, rtol=0)
    assert found.is_contiguous() and torch.equal(found, orthonormal_rows(n_embed, d_model, 1))
    assert not torch.equal(found.abs(), orthonormal_rows(n_embed, d_model, 2).abs())


# Rules


@pytest.mark.parametrize("name", RULES)
def test_a_rule_gives_every_id_a_code_of_its_own(name, monkeypatch):
    monkeypatch.setattr(codes, "ROWS", 50)
    config = RULES[name]
    found = all_codes(config, rule_tensors(config))
    assert found.shape == (300, config.n_embed) and len(torch.unique(found, dim=0)) == 300


def test_an_affine_code_is_the_map_of_the_digits_plus_the_offset():
    config = RULES["affine, shuffled"]
    tensors = rule_tensors(config)
    digits = np.array([[int(tensors["shuffled_V"][number]) >> place & 1 for place in range(9)] for number in range(300)])
    expected = (digits @ tensors["affine_NE"].numpy() + tensors["offset_E"].numpy()) % 2
    assert np.array_equal(all_codes(config, tensors).numpy(), expected)


def test_shuffling_only_gives_the_same_codes_to_other_ids():
    plain, shuffled = (all_codes(RULES[name], rule_tensors(RULES[name])) for name in ("token_bits", "shuffled"))
    assert torch.equal(shuffled, plain[shuffled_ids(300, 3)]) and not torch.equal(shuffled, plain)


def test_fingerprints_depend_on_every_parameter_but_not_whether_it_is_trained():
    changes = {}, {"seed": 9}, {"lift": "tile"}, {"lift": "orthogonal"}, {"lift_seed": 2}, {"scale": "none"}, {"n_embed": 32}
    configs = [SubstrateConfig(**{"vocab_size": 300, "n_embed": 16, "kind": "learned"} | change) for change in changes]
    tensors = {"table_VE": torch.ones(300, 16)}
    found = {fingerprint(config, "tokenizer", tensors) for config in configs}
    zeros = {"table_VE": torch.zeros(300, 16)}
    found |= {fingerprint(configs[0], "other", tensors), fingerprint(configs[0], "tokenizer", zeros)}
    assert len(found) == len(changes) + 2
    trained = SubstrateConfig(300, 16, "learned", trainable=True, fingerprint="x")
    assert fingerprint(trained, "tokenizer", tensors) in found


def test_tensors_of_other_names_or_shapes_are_refused(tmp_path):
    assert expected_shapes(RULES["affine"]) == {"affine_NE": (9, 16), "offset_E": (16,)}
    with pytest.raises(InputError, match=r"f holds the codes \{\}, not \{'shuffled_V': \(300,\)\}"):
        check_tensors(tmp_path / "f", RULES["shuffled"], {})
    check_tensors(tmp_path / "f", RULES["shuffled"], rule_tensors(RULES["shuffled"]))


# Scale, and id bits that make codes unique


@pytest.mark.parametrize(("scale", "norm"), [("l2", 1), ("unit_rms", math.sqrt(20))])
def test_a_table_is_scaled_in_place(scale, norm, monkeypatch):
    monkeypatch.setattr(codes, "ROWS", 3)
    table_VE = torch.randn(10, 20, generator=torch.Generator().manual_seed(1))
    before = table_VE.clone()
    scale_table(table_VE, scale)
    torch.testing.assert_close(table_VE, before / before.norm(dim=1, keepdim=True) * norm)
    scale_table(before, "none")
    assert torch.equal(before, torch.randn(10, 20, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("scale", ["l2", "unit_rms", "none"])
@pytest.mark.parametrize("content", ["equal", "zeros", "random"])
def test_id_bits_make_all_rows_distinct(scale, content):
    table_VE = {"equal": torch.ones(100, 12), "zeros": torch.zeros(100, 12), "random": torch.randn(100, 12)}[content]
    before = table_VE[:, :5].clone()
    put_id_bits(table_VE, 7, scale)
    assert len(torch.unique(table_VE, dim=0)) == 100 and table_VE.isfinite().all()
    torch.testing.assert_close(torch.nn.functional.normalize(table_VE[:, :5]), torch.nn.functional.normalize(before))


def test_id_bits_are_as_large_as_the_other_columns():
    table_VE = torch.randn(1 << 10, 50, generator=torch.Generator().manual_seed(1))
    put_id_bits(table_VE, 10, "none")
    assert torch.equal(table_VE[:, 40:] > 0, (torch.arange(1 << 10)[:, None] >> torch.arange(10) & 1).bool())
    torch.testing.assert_close(table_VE[:, 40:].abs(), table_VE[:, :40].square().mean().sqrt().expand(1 << 10, 10))
    put_id_bits(table_VE, 10, "unit_rms")
    torch.testing.assert_close(table_VE.square().mean(1), torch.ones(1 << 10))


# Tables of others


def table(rows=4, columns=3):
    return torch.arange(rows * columns).reshape(rows, columns).float()


WRITERS = {
    "t.pt": lambda path, table: torch.save(table, path),
    "weights.pt": lambda path, table: torch.save({"weight": torch.nn.Parameter(table, False), "size": 4}, path),
    "t.safetensors": lambda path, table: safetensors.torch.save_file({"any": table}, path),
    "t.npy": lambda path, table: np.save(path, table.numpy()),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int64])
@pytest.mark.parametrize("name", WRITERS)
def test_a_table_of_others_is_read_as_float32(tmp_path, name, dtype):
    WRITERS[name](tmp_path / name, table().to(dtype))
    found = read_table(tmp_path / name, 4, 3)
    assert found.dtype == torch.float32 and torch.equal(found, table())


def save_objects(path):
    torch.save(argparse.Namespace(table=table()), path)


def save_nan(path):
    torch.save(table().index_fill(0, torch.tensor(2), math.nan), path)


def cut(path):
    torch.save(torch.zeros(200, 30), path)
    path.write_bytes(path.read_bytes()[:9000])


BAD_FILES = {
    "none.pt": (lambda path: None, "does not exist"),
    "table.csv": (lambda path: path.write_text("1,2"), "ends in '.csv'; name a file that ends in .pt, .safetensors, .npy"),
    "objects.pt": (save_objects, "holds more than plain tensors.*save the table alone"),
    "module.pt": (lambda path: torch.save(torch.nn.Embedding(4, 3), path), "holds more than plain tensors"),
    "cut.pt": (cut, "is damaged"),
    "empty.pt": (lambda path: path.touch(), "is damaged"),
    "text.pt": (lambda path: path.write_text("hello"), "is damaged"),
    "text.npy": (lambda path: path.write_text("hello"), "is damaged"),
    "objects.npy": (lambda path: np.save(path, np.array([{}, 1])), "holds more than plain tensors"),
    "words.npy": (lambda path: np.save(path, np.array(["a", "b"])), "holds more than plain tensors"),
    "text.safetensors": (lambda path: path.write_text("hello"), "cannot be read"),
    "two.pt": (lambda path: torch.save({"a": table(), "b": table()}, path), "holds 2 tensors, exactly one"),
    "two.safetensors": (lambda path: safetensors.torch.save_file({"a": table(), "b": table()}, path), "holds 2 tensors"),
    "list.pt": (lambda path: torch.save([table()], path), "holds 0 tensors"),
    "wide.pt": (lambda path: torch.save(table(4, 5), path), r"shape \(4, 5\), but.*need real numbers of shape \(4, 3\)"),
    "flat.npy": (lambda path: np.save(path, np.zeros(12, np.float32)), r"shape \(12,\)"),
    "complex.pt": (lambda path: torch.save(table().to(torch.complex64), path), "torch.complex64.*save the table alone"),
    "sparse.pt": (lambda path: torch.save(table().to_sparse(), path), "sparse_coo.*save the table alone"),
    "nan.pt": (save_nan, "NaN, infinity .*, first in row 2"),
    "large.npy": (lambda path: np.save(path, table().numpy().astype(float) * 1e300), "infinite in float32, first in row 0"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_table_is_refused_in_one_line_with_its_file(tmp_path, name):
    write, said = BAD_FILES[name]
    write(tmp_path / name)
    with pytest.raises(InputError, match=said) as refused:
        read_table(tmp_path / name, 4, 3)
    assert str(refused.value).startswith(str(tmp_path / name)) and "\n" not in str(refused.value)
