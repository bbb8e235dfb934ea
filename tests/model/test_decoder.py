"""The decoder against the released definition, written out again token by token, and against itself."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from iqc.model.decoder import Decoder, Recompute, rotate

SHAPES = [(1, 3), (2, 1), (2, 3), (2, 100), (3, 4)]  # (passes, window)


def spelled_out(model: Decoder, tokens: list[int]) -> torch.Tensor:
    """Logits [T, V] of one document in float64, from the state dict alone: loops over passes, layers, tokens, heads."""
    c, p = model.config, {k: v.double() for k, v in model.state_dict().items()}
    d, group = c.head_dim, c.num_attention_heads // c.num_key_value_heads

    def norm(x, weight):
        return x / torch.sqrt((x * x).mean() + c.rms_norm_eps) * weight

    def turn(x, t):  # one head
        out = x.clone()
        for i in range(d // 2):
            angle = t * c.rope_theta ** (-2 * i / d)
            out[i] = x[i] * math.cos(angle) - x[i + d // 2] * math.sin(angle)
            out[i + d // 2] = x[i + d // 2] * math.cos(angle) + x[i] * math.sin(angle)
        return out

    def attend(q, keys, values, seen, h):
        w = torch.stack([q @ keys[j][h // group] for j in seen]).div(math.sqrt(d)).softmax(0)
        return sum(a * values[j][h // group] for a, j in zip(w, seen))

    hs = [p["model.embed_tokens.weight"][x] for x in tokens]
    first = {}
    for loop in range(c.loop_num):
        for i in range(c.num_hidden_layers):
            w = {k.removeprefix(f"model.layers.{i}."): v for k, v in p.items() if k.startswith(f"model.layers.{i}.")}
            us = [norm(h, w["input_layernorm.weight"]) for h in hs]
            qs, ks, vs = (
                [(w[f"self_attn.{n}_proj.weight"] @ u).view(-1, d) for u in us] for n in ("q", "k", "v")
            )  # fmt: skip
            qs = [torch.stack([turn(x, t) for x in q]) for t, q in enumerate(qs)]
            ks = [torch.stack([turn(x, t) for x in k]) for t, k in enumerate(ks)]
            if loop == 0:
                first[i] = ks, vs
            for t in range(len(tokens)):
                heads = []
                for h in range(c.num_attention_heads):
                    o = attend(qs[t][h], *first[i], range(t + 1), h)
                    if loop > 0:
                        row = p[f"model.gate_projections.{i}.weight"][h]
                        g = torch.sigmoid(row @ qs[t][h] + p[f"model.gate_projections.{i}.bias"][h])
                        near = range(max(0, t - c.loop_window_size + 1), t + 1)
                        o = g * o + (1 - g) * attend(qs[t][h], ks, vs, near, h)
                    heads.append(o)
                hs[t] = hs[t] + w["self_attn.o_proj.weight"] @ torch.cat(heads)
                u = norm(hs[t], w["post_attention_layernorm.weight"])
                u = F.silu(w["mlp.gate_proj.weight"] @ u) * (w["mlp.up_proj.weight"] @ u)
                hs[t] = hs[t] + w["mlp.down_proj.weight"] @ u
    return torch.stack([p["lm_head.weight"] @ norm(h, p["model.norm.weight"]) for h in hs])


@pytest.mark.parametrize(("loops", "window"), SHAPES)
def test_equals_the_definition_spelled_out(tiny, loops, window):
    model = tiny(loops, window)
    tokens = torch.randint(50, (1, 11), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = model.logits(model(tokens))[0]
        torch.testing.assert_close(ours, spelled_out(model, tokens[0].tolist()), rtol=0, atol=1e-9)


def test_rotation_turns_halves_not_neighbours():
    x = torch.tensor([1.0, 0.0, 0.0, 0.0]).view(1, 1, 1, 4)
    quarter = torch.full((1, 1, 1, 2), math.pi / 2)
    torch.testing.assert_close(rotate(x, quarter.cos(), quarter.sin()).flatten(), torch.tensor([0.0, 0.0, 1.0, 0.0]))


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 9), max_size=3), min_size=1, max_size=3),
    spare=st.integers(0, 3),
    shape=st.sampled_from(SHAPES),
    data=st.data(),
)
def test_packed_equals_separate(models, lengths, spare, shape, data):
    """Documents in a row give what each gives alone, with windows shorter than they are."""
    model = models[shape]
    width = max(1, max(map(sum, lengths)) + spare)
    seed = data.draw(st.integers(0, 2**32))
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randint(50, (len(lengths), width), generator=g)
    weights = torch.rand(tokens.shape, generator=g, dtype=torch.float64) * (torch.rand(tokens.shape, generator=g) > 0.3)
    with torch.no_grad():
        hidden, scores = model(tokens, lengths), model.token_logprobs(tokens, lengths)
        loss, total = model.loss(tokens, lengths, weights)
        expected_loss, expected_total = 0.0, 0.0
        for b, row in enumerate(lengths):
            at = 0
            for n in row:
                alone = tokens[b : b + 1, at : at + n]
                torch.testing.assert_close(hidden[b, at : at + n], model(alone)[0], rtol=0, atol=1e-10)
                p = model.token_logprobs(alone)[0]
                torch.testing.assert_close(scores[b, at : at + n], p, rtol=0, atol=1e-10)
                assert p[0].item() == 0
                expected_loss -= (p[1:] * weights[b, at + 1 : at + n]).sum().item()
                expected_total += weights[b, at + 1 : at + n].sum().item()
                at += n
            assert scores[b, at:].abs().sum().item() == 0
    assert loss.item() == pytest.approx(expected_loss, abs=1e-9)
    assert total.item() == pytest.approx(expected_total, abs=1e-9)


@pytest.fixture(scope="module")
def models(tiny):
    return {shape: tiny(*shape) for shape in SHAPES}


def test_loss_without_weights_is_the_negative_log_probability(tiny):
    model = tiny()
    tokens = torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(0))
    loss, count = model.loss(tokens, [[5, 7], [9]])
    assert count.item() == 4 + 6 + 8
    torch.testing.assert_close(loss, -model.token_logprobs(tokens, [[5, 7], [9]]).sum(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("loops", [1, 2])
@pytest.mark.parametrize("lengths", [[[6], [9]], [[3, 3], [9]]])  # plain causal rows, and masked ones
def test_padding_that_is_not_a_number_does_not_leak(tiny, loops, lengths):
    model = tiny(loops)
    tokens = torch.randint(1, 50, (2, 9), generator=torch.Generator().manual_seed(0))
    tokens[0, 6:] = 0
    clean = model.token_logprobs(tokens, lengths).detach()
    with torch.no_grad():
        model.model.embed_tokens.weight[0] = math.nan
    torch.testing.assert_close(model.token_logprobs(tokens, lengths), clean, rtol=0, atol=0)
    model.loss(tokens, lengths)[0].backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert all(torch.isfinite(g).all() for g in grads.values())
    assert grads["model.embed_tokens.weight"][0].abs().sum().item() == 0


@pytest.mark.parametrize("recompute", ["mlp", "mlp:3", "block", "block:3", "block:1,mlp:2"])
@pytest.mark.parametrize("loops", [1, 2, 3])
def test_recompute_changes_no_gradient(tiny, loops, recompute):
    """Keys and values of pass 1 are used a pass later: recompute inside a block would lose their share."""
    tokens = torch.randint(50, (2, 13), generator=torch.Generator().manual_seed(0))
    gradients = []
    for how in ("none", recompute):
        model = tiny(loops).train()
        model.model.recompute = Recompute.parse(how)
        loss, count = model.loss(tokens, [[6, 7], [10]])
        (loss / count).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, expected in gradients[0].items():
        assert expected.abs().sum().item() > 0, name
        torch.testing.assert_close(gradients[1][name], expected, rtol=0, atol=1e-12)


def test_recompute_keeps_fewer_activations(tiny):
    def saved_bytes(recompute: str) -> int:
        model = tiny(intermediate_size=96).train()
        model.model.recompute = Recompute.parse(recompute)
        storages = {}

        def pack(x):
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = model.loss(torch.zeros(2, 64, dtype=torch.int64))[0]
        assert loss.requires_grad
        return sum(storages.values())

    sizes = [saved_bytes(how) for how in ("none", "mlp:2", "mlp", "block:2,mlp", "block")]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)
    assert sizes[2] < sizes[0] * 0.6
    assert sizes[4] < sizes[0] / 3


def test_recompute_is_for_training(tiny):
    model = tiny().eval()
    model.model.recompute = Recompute.parse("block")
    runs = []
    model.model.layers[0].register_forward_hook(lambda *_: runs.append(None))
    model.loss(torch.zeros(1, 5, dtype=torch.int64))[0].backward()
    assert len(runs) == 2  # passes
    for wrong in ("all", "mlp:x", ""):
        with pytest.raises(ValueError, match="block"):
            Recompute.parse(wrong)


def test_gradient_of_a_weighted_loss_is_that_of_the_log_probabilities(tiny):
    model = tiny()
    g = torch.Generator().manual_seed(0)
    tokens, weights = torch.randint(50, (2, 12), generator=g), torch.randn(2, 12, generator=g, dtype=torch.float64)
    lengths = [[4, 8], [11]]
    parameters = list(model.parameters())
    ours = torch.autograd.grad(model.loss(tokens, lengths, weights)[0], parameters)
    theirs = torch.autograd.grad((model.token_logprobs(tokens, lengths) * -weights).sum(), parameters)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_row_losses_are_what_each_row_adds(tiny):
    model = tiny()
    g = torch.Generator().manual_seed(0)
    tokens, weights = torch.randint(50, (3, 12), generator=g), torch.rand(3, 12, generator=g)
    weights[1] = 0.0
    lengths = [[4, 8], [12], [7]]
    total, _ = model.loss(tokens, lengths, weights)
    rows = -(model.token_logprobs(tokens, lengths) * weights).sum(1)
    assert not model.row_losses.requires_grad and model.row_losses[1] == 0
    torch.testing.assert_close(model.row_losses.double(), rows, rtol=1e-6, atol=0)
    torch.testing.assert_close(model.row_losses.double().sum(), total, rtol=1e-6, atol=0)


def test_padding_after_and_unlisted_length_agree(tiny):
    model = tiny(dtype=torch.float32)
    tokens = torch.randint(50, (1, 9), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(tokens, [[9]]), model(tokens))


@pytest.mark.parametrize("loops", [1, 2, 3])
def test_gradient_is_the_slope_of_the_loss(tiny, loops):
    """Central differences along one random direction: a path that autograd missed (keys of pass 1, say) would show."""
    model = tiny(loops)
    g = torch.Generator().manual_seed(1)
    tokens = torch.randint(50, (2, 13), generator=g)
    directions = [torch.randn(p.shape, generator=g, dtype=torch.float64) for p in model.parameters()]

    def loss() -> torch.Tensor:
        return model.loss(tokens, [[6, 7], [10]])[0]

    slope = sum((a * d).sum() for a, d in zip(torch.autograd.grad(loss(), list(model.parameters())), directions))
    step = 1e-6
    with torch.no_grad():
        values = []
        for way in (step, -2 * step):  # from the weights to one side, then to the other
            for p, d in zip(model.parameters(), directions):
                p.add_(d, alpha=way)
            values.append(loss().item())
    assert slope.item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-6)


@pytest.mark.parametrize("loops", [1, 2])
def test_autocast_is_the_model_in_bfloat16_with_exact_gradients(tiny, loops):
    """Products, residual stream and attention in bfloat16; weights and their gradients as they are kept."""
    model = tiny(loops, dtype=torch.float32)
    tokens = torch.randint(50, (2, 13), generator=torch.Generator().manual_seed(0))
    exact, expected = model.loss(tokens, [[6, 7], [10]])[0], tiny(loops, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(tokens).dtype == torch.bfloat16
        loss = model.loss(tokens, [[6, 7], [10]])[0]
    loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())
    assert loss.item() == pytest.approx(exact.item(), rel=2e-2)
    assert loss.item() == pytest.approx(expected.loss(tokens, [[6, 7], [10]])[0].item(), rel=1e-2)
