"""The bytes of a checkpoint: those that the safetensors library writes, whoever wrote what; any slice comes back."""

import json
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from iqc.model.checkpoint import load_model, released_names, save_model
from iqc.model.config import ModelConfig
from iqc.model.decoder import Decoder
from iqc.train.checkpoints import (
    NAMES,
    Entry,
    Layout,
    Piece,
    Stored,
    check_cover,
    load_pieces,
    pieces_of,
    share,
)
from iqc.train.optimizer import make_optimizer
from iqc.train.saver import write

LOOP = ModelConfig(90, 16, 24, 2, 4, 2, 32, loop_num=2, loop_window_size=8)
EXPERTS = ModelConfig(
    90, 16, 24, 3, 4, 2, 32, num_experts=3, num_experts_per_tok=2, num_shared_experts=1, moe_intermediate_size=8,
    first_k_dense_replace=1, norm_head=True,
)  # fmt: skip
TENSORS = st.dictionaries(
    st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1, max_size=4),
    st.tuples(st.sampled_from(list(NAMES)), st.lists(st.integers(0, 4), max_size=3).map(tuple)),
    max_size=6,
)


def filled(dtype, shape):
    generator = torch.Generator().manual_seed(prod(shape) + len(shape))
    return torch.randint(0, 2 if dtype is torch.bool else 100, shape, generator=generator).to(dtype)


def write_all(pieces, config, place, ranks=1, **how):
    """Write as that many ranks, the last first."""
    every = [list(pieces(rank, ranks)) for rank in range(ranks)]
    layout = Layout(check_cover((p.entry, p.start, len(p.values)) for own in every for p in own), config, **how)
    for rank in reversed(range(ranks)):
        write(every[rank], layout, place, headers=rank == 0)
    assert {path: (place / path).stat().st_size for path in layout.sizes} == layout.sizes
    for path, data in layout.indexes.items():
        (place / path).write_bytes(data)
    return layout


def trained(config, kind="adamw", dtype=torch.float32):
    """A model after a step, so that there is state."""
    model = Decoder(config, seed=3).to(dtype)
    optimizer = make_optimizer(model, 1e-3, kind)
    model.loss(torch.arange(40).view(2, 20) % 90)[0].backward()
    optimizer.step()
    return model, optimizer


@settings(max_examples=40)
@given(TENSORS, st.integers(1, 4))
def test_files_are_those_of_the_safetensors_library(tmp_path_factory, tensors, ranks):
    place = tmp_path_factory.mktemp("layout")
    made = {name: filled(*about) for name, about in tensors.items()}
    files = {"optimizer": None, "model": {"format": "pt"}, "ema/model": {"format": "pt"}}

    def pieces(rank, ranks):
        for file in files:
            for name, tensor in made.items():
                start, values = share(tensor.reshape(-1), rank, ranks)
                yield Piece(file, name, tuple(tensor.shape), tensor.dtype, start, values)

    write_all(pieces, LOOP, place, ranks)
    for file, metadata in files.items() if made else ():
        save_file(made, place / "expected", metadata=metadata)
        assert (place / f"{file}.safetensors").read_bytes() == (place / "expected").read_bytes()


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize(("config", "kind", "dtype"), [
    (LOOP, "muon", torch.bfloat16), (EXPERTS, "adamw", torch.float32),
], ids=["loop", "experts"])  # fmt: skip
def test_any_number_of_ranks_writes_what_one_process_saves(tmp_path, config, kind, dtype, ranks):
    model, optimizer = trained(config, kind, dtype)
    write_all(lambda *at: pieces_of(model, optimizer, *at), config, tmp_path, ranks)
    save_model(tmp_path / "whole", model)
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    state = {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }
    save_file(state, tmp_path / "state")
    assert (tmp_path / "optimizer.safetensors").read_bytes() == (tmp_path / "state").read_bytes()


@pytest.mark.parametrize("config", [LOOP, EXPERTS], ids=["loop", "experts"])
def test_shards_and_slices(tmp_path, config):
    """Small shards hold the same tensors; every slice of every tensor comes back; a model and its state too."""
    model, optimizer = trained(config)
    save_model(tmp_path, model)  # config.json
    (tmp_path / "model.safetensors").unlink()
    layout = write_all(lambda *at: pieces_of(model, optimizer, *at), config, tmp_path, 2, limit=3000)
    names = sorted(path.name for path in tmp_path.glob("model-*.safetensors"))
    assert len(names) > 3 and names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    for name in names:
        found = load_file(tmp_path / name)
        assert len(found) == 1 or sum(tensor.nbytes for tensor in found.values()) <= 3000
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    expected = released_names(model)
    assert set(index["weight_map"]) == set(expected)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())
    assert all(torch.equal(p, q) for p, q in zip(load_model(tmp_path).parameters(), model.parameters(), strict=True))

    stored = Stored(tmp_path, config)
    assert stored.has("optimizer") and not stored.has("ema/model")
    assert sorted(stored.names("model")) == sorted(name for name, _ in model.named_parameters())
    for piece in pieces_of(model, optimizer):
        size = len(piece.values)
        assert stored.tensor(piece.file, piece.name).shape == piece.shape
        for start, count in ((0, size), (0, 1), (size // 3, size // 2), (size - 1, 1)):
            assert torch.equal(stored.read(piece.file, piece.name, start, count), piece.values[start : start + count])

    other = Decoder(config, seed=4)
    state = make_optimizer(other, 1e-3, "adamw")
    load_pieces(other, state, stored)
    for old, new in zip(pieces_of(model, optimizer), pieces_of(other, state), strict=True):
        assert old.entry == new.entry and torch.equal(old.values, new.values)
    assert layout.indexes.keys() == {"model.safetensors.index.json", "optimizer.safetensors.index.json"}


def test_what_ranks_hold_must_be_everything_once():
    entry = Entry("model", "a", (2, 3), torch.float32)
    assert check_cover([(entry, 4, 2), (entry, 0, 3), (entry, 3, 1)]) == [entry]
    for match, spans in (
        ("a: elements 3 to 4 are held by no", [(0, 3), (4, 2)]),
        ("elements 5 to 6 are held by no", [(0, 5)]),
        ("elements 0 to 1 are held by no", [(1, 5)]),
        ("elements 2 to 3 are held by more than one", [(0, 3), (2, 4)]),
        ("more than one", [(0, 6), (0, 6)]),
    ):
        with pytest.raises(ValueError, match=match):
            check_cover([(entry, *span) for span in spans])
    with pytest.raises(ValueError, match=r"a is .* on different ranks"):
        check_cover([(entry, 0, 3), (entry._replace(dtype=torch.float64), 3, 3)])
