"""Experts and NormHead against plain loops over tokens, against Transformers' Mixtral, and in a whole training run."""

import itertools
import json

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from safetensors.torch import load_file

from iqc.errors import IqcError
from iqc.export.huggingface import export
from iqc.model.bailing import from_released, to_released
from iqc.model.checkpoint import load_model, save_model
from iqc.model.compiled import compile_blocks
from iqc.model.config import ModelConfig, parameter_count, preset
from iqc.model.decoder import MLP, Decoder, Recompute
from iqc.model.experts import Experts, balance_loss, fused_grouped_linear, grouped_linear, norm_head
from iqc.model.generate import generate

EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "num_shared_experts": 2, "moe_intermediate_size": 16}
TOKENS = torch.randint(50, (2, 13), generator=torch.Generator().manual_seed(0))


def spelled_out(layer: Experts, x: torch.Tensor) -> torch.Tensor:
    """One token and one expert at a time."""
    rows = []
    for token in x.flatten(0, -2):
        p = torch.exp(layer.gate.weight @ token)
        p = p / p.sum()
        best = sorted(range(len(p)), key=lambda e: -p[e].item())[: layer.per_token]
        total = sum(p[e] for e in best) if layer.normalised else 1.0
        row = torch.zeros_like(token)
        for e in best:
            inner = F.silu(layer.gate_proj[e] @ token) * (layer.up_proj[e] @ token)
            row = row + p[e] / total * (layer.down_proj[e] @ inner)
        if layer.shared_experts is not None:
            s = layer.shared_experts
            row = row + s.down_proj.weight @ (F.silu(s.gate_proj.weight @ token) * (s.up_proj.weight @ token))
        rows.append(row)
    return torch.stack(rows).view_as(x)


@pytest.mark.parametrize(
    ("experts", "per_token", "normalised", "shared"),
    [(5, 2, True, 2), (5, 2, False, 2), (5, 1, False, 0), (5, 5, True, 1), (1, 1, True, 0), (40, 6, False, 2)],
)
def test_equals_a_loop_over_tokens_with_its_gradients(experts, per_token, normalised, shared):
    config = ModelConfig(50, 24, 40, 2, 6, 2, 32, num_experts=experts, num_experts_per_tok=per_token,
                         num_shared_experts=shared, moe_intermediate_size=16, norm_topk_prob=normalised)  # fmt: skip
    layer = Experts(config, MLP(24, 16 * shared) if shared else None).double()
    g = torch.Generator().manual_seed(experts)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64) * 0.3)
    x = torch.randn(2, 9, 24, generator=g, dtype=torch.float64, requires_grad=True)
    slope = torch.randn(2, 9, 24, generator=g, dtype=torch.float64)
    ours, expected = layer(x), spelled_out(layer, x)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    inputs = [x, *layer.parameters()]
    found = torch.autograd.grad(ours, inputs, slope)
    wanted = torch.autograd.grad(expected, inputs, slope, allow_unused=True)
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, rtol=0, atol=1e-12)
    unused = layer.gate.weight if per_token == 1 and normalised else None  # one share of 1 has no slope
    assert all(a.abs().sum() > 0 for a, p in zip(found, inputs) if p is not unused)


@pytest.mark.parametrize("counts", [[3, 0, 4], [0, 7, 0], [0, 0, 0], [1, 1, 1]])
def test_one_kernel_is_the_loop_over_experts(counts):
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(sum(counts), 16, generator=g), torch.randn(3, 8, 16, generator=g)
    expected = [weight[e] @ row for e, row in zip(itertools.chain(*([e] * n for e, n in enumerate(counts))), x)]
    expected = torch.stack(expected) if expected else torch.empty(0, 8)
    torch.testing.assert_close(grouped_linear(x, weight, torch.tensor(counts)), expected)
    if sum(counts):
        try:
            fused = fused_grouped_linear(x, weight, torch.tensor(counts))
        except (RuntimeError, AttributeError) as error:
            pytest.skip(f"no grouped_mm here: {error}")
        torch.testing.assert_close(fused, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_kernel_with_gradients():
    """bfloat16 in one kernel against float32 expert by expert, the same choices."""
    layer = Experts(ModelConfig(64, 64, 64, 1, 4, 2, 32, **EXPERTS | {"num_experts": 8}), None).cuda()
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn_like(p).mul(0.1).bfloat16())
    chosen = torch.rand(100, 7, device="cuda").topk(2).indices  # one expert goes without a row
    x = torch.randn(100, 64, device="cuda").bfloat16().float().requires_grad_()
    stacks = [layer.gate_proj, layer.up_proj, layer.down_proj]
    exact = layer._routed(x, chosen)
    slope = torch.randn_like(exact).bfloat16().float()
    exact = [exact, *torch.autograd.grad(exact, [x, *stacks], slope)]
    layer.bfloat16()
    low, stacks = x.detach().bfloat16().requires_grad_(), [layer.gate_proj, layer.up_proj, layer.down_proj]
    found = layer._routed(low, chosen)
    found = [found, *torch.autograd.grad(found, [low, *stacks], slope.bfloat16())]
    for a, b in zip(found, exact):
        assert (a - b).norm() < 0.02 * b.norm()


def test_a_model_is_transformers_mixtral(tiny):
    """Without shared experts and with shares that sum to 1, the mathematics is Mixtral's; so is the balance."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    model = tiny(1, dtype=torch.float32, **EXPERTS | {"num_shared_experts": 0})
    c = model.config
    theirs = transformers.MixtralForCausalLM(
        transformers.MixtralConfig(
            vocab_size=c.vocab_size, hidden_size=c.hidden_size, intermediate_size=c.moe_intermediate_size,
            num_hidden_layers=c.num_hidden_layers, num_attention_heads=c.num_attention_heads,
            num_key_value_heads=c.num_key_value_heads, num_local_experts=c.num_experts, sliding_window=None,
            num_experts_per_tok=c.num_experts_per_tok, rope_theta=c.rope_theta, rms_norm_eps=c.rms_norm_eps,
            attn_implementation="eager",
        )
    ).eval()  # fmt: skip
    state = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("mlp.gate_proj"):
            up = model.state_dict()[name.replace("gate_proj", "up_proj")]
            state[name.replace("gate_proj", "experts.gate_up_proj")] = torch.cat([tensor, up], 1)
        elif not name.endswith("mlp.up_proj"):
            state[name.replace("mlp.down_proj", "mlp.experts.down_proj")] = tensor
    theirs.load_state_dict(state)
    with torch.no_grad():
        given = theirs(TOKENS, output_router_logits=True)
        torch.testing.assert_close(model.logits(model(TOKENS)), given.logits, rtol=0, atol=2e-5)
        model.train().loss(TOKENS)
    expected = [load_balancing_loss_func((scores,), 5, 2) for scores in given.router_logits]
    assert float(model.balance) == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)


def test_even_routing_costs_k_and_one_expert_for_all_costs_most():
    p, chosen = torch.full((12, 4), 0.25), torch.arange(24).view(12, 2) % 4
    assert balance_loss(p, chosen).item() == pytest.approx(2)
    one = torch.tensor([[1.0, 0, 0, 0]]).expand(12, 4)
    assert balance_loss(one, torch.tensor([[0, 1]]).expand(12, 2)).item() == pytest.approx(4)
    real = torch.arange(12) < 6
    assert balance_loss(torch.cat([p[:6], one[:6]]), chosen, real).item() == pytest.approx(2)


def test_the_loss_has_the_balance_in_training_alone(tiny):
    model, lengths = tiny(1, **EXPERTS, router_aux_loss_coef=0.5), [[6, 7], [10]]
    plain, count = model.eval().loss(TOKENS, lengths)
    with_balance, same = model.train().loss(TOKENS, lengths)
    assert count == same and model.balance > 0
    assert (with_balance - plain).item() == pytest.approx(0.5 * float(model.balance) * count.item(), rel=1e-12)
    torch.testing.assert_close(plain, -model.eval().token_logprobs(TOKENS, lengths).sum(), rtol=1e-12, atol=0)
    padded = F.pad(TOKENS, (0, 20))
    before = float(model.balance)
    model.train().loss(padded, lengths)
    assert float(model.balance) == pytest.approx(before, rel=1e-12)  # padding is nobody's load


def test_the_balance_pulls_the_router_towards_even_loads():
    g = torch.Generator().manual_seed(0)
    x, gate = torch.randn(200, 24, generator=g) + 1, torch.randn(5, 24, generator=g).mul(0.3).requires_grad_()
    found = []
    for _ in range(100):
        p = (x @ gate.T).softmax(-1)
        loss = balance_loss(p, p.topk(2).indices)
        found.append(loss.item())
        gate.data.sub_(torch.autograd.grad(loss, gate)[0], alpha=0.05)
    assert found[0] > 3 and max(found[-10:]) < 2.2


def gradients(model: Decoder) -> dict[str, torch.Tensor]:
    for _ in range(2):  # the second must not see the routing of the first
        model.zero_grad()
        loss, count = model.loss(TOKENS, [[6, 7], [10]])
        (loss / count).backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("recompute", ["none", "block", "mlp", "block:1,mlp:1"])
def test_neither_recompute_nor_compiling_changes_a_gradient(tiny, recompute, compiled):
    shape = EXPERTS | {"first_k_dense_replace": 1, "norm_head": True, "router_aux_loss_coef": 0.1}
    plain, model = tiny(1, **shape).train(), tiny(1, **shape).train()
    model.model.recompute = Recompute.parse(recompute)
    if compiled:
        torch._dynamo.reset()
        compile_blocks(model, backend="aot_eager_decomp_partition")
    found = gradients(model)
    for name, expected in gradients(plain).items():
        assert expected.abs().sum().item() > 0, name
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-12)


def test_norm_head_is_over_the_vocabulary():
    weight = torch.randn(50, 8, dtype=torch.float64, requires_grad=True)
    made = norm_head(weight)
    for column in range(8):
        norm = sum(weight[v, column].item() ** 2 for v in range(50)) ** 0.5
        torch.testing.assert_close(made[:, column], weight[:, column] / (norm + 1e-7), rtol=1e-12, atol=0)
    (slope,) = torch.autograd.grad(made.sum(), weight)
    torch.testing.assert_close(slope, (made / weight).detach())  # the norm is a constant to it
    assert norm_head(weight.detach().bfloat16()).dtype == torch.bfloat16


def test_a_folded_head_is_the_same_model(tiny, tmp_path):
    model = tiny(1, **EXPERTS, norm_head=True).eval()
    logits, scores = model.logits(model(TOKENS)), model.token_logprobs(TOKENS)
    loss = model.loss(TOKENS)[0]
    torch.testing.assert_close(logits, model(TOKENS) @ norm_head(model.lm_head.weight).T)
    (tmp_path / "tokenizer.json").write_text("{}")
    save_model(tmp_path / "m", model, files=[tmp_path / "tokenizer.json"])
    export(tmp_path / "m", tmp_path / "out")
    assert json.loads((tmp_path / "m/config.json").read_text())["norm_head"] is True
    assert json.loads((tmp_path / "out/config.json").read_text())["norm_head"] is False
    assert (tmp_path / "out/tokenizer.json").exists()
    again = load_model(tmp_path / "out").eval()
    torch.testing.assert_close(again.logits(again(TOKENS)), logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(again.token_logprobs(TOKENS), scores, rtol=0, atol=1e-12)
    torch.testing.assert_close(again.loss(TOKENS)[0], loss, rtol=1e-12, atol=0)


def test_checkpoints_have_the_released_names(tiny, tmp_path):
    model = tiny(1, **EXPERTS, first_k_dense_replace=1, norm_head=True)
    save_model(tmp_path / "m", model)
    tensors = load_file(tmp_path / "m/model.safetensors")
    dense, routed = "model.layers.0", "model.layers.1"
    expected = {"model.word_embeddings.weight": (50, 24), "model.norm.weight": (24,), "lm_head.weight": (50, 24)}
    for layer in (dense, routed):
        expected |= {
            f"{layer}.attention.query_key_value.weight": (40, 24),
            f"{layer}.attention.dense.weight": (24, 24),
            f"{layer}.input_layernorm.weight": (24,),
            f"{layer}.post_attention_layernorm.weight": (24,),
        }
    expected[f"{routed}.mlp.gate.weight"] = (5, 24)
    widths = {f"{dense}.mlp": 40, f"{routed}.mlp.shared_experts": 32}
    widths |= {f"{routed}.mlp.experts.{e}": 16 for e in range(5)}
    for place, width in widths.items():
        expected |= {f"{place}.{name}_proj.weight": (width, 24) for name in ("gate", "up")}
        expected[f"{place}.down_proj.weight"] = (24, width)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == expected
    again = load_model(tmp_path / "m")
    assert again.config.to_hf() == model.config.to_hf()
    for (name, a), (_, b) in zip(model.named_parameters(), again.named_parameters()):
        assert torch.equal(a, b) and b.requires_grad, name


def test_wrong_tensors_are_named_as_in_the_file(tiny, tmp_path):
    from safetensors.torch import save_file

    save_model(tmp_path / "m", tiny(1, **EXPERTS))
    tensors = load_file(tmp_path / "m/model.safetensors")
    del tensors["model.layers.1.mlp.experts.3.up_proj.weight"]
    save_file(tensors, tmp_path / "m/model.safetensors")
    with pytest.raises(IqcError, match=r"missing model\.layers\.1\.mlp\.experts\.3\.up_proj\.weight"):
        load_model(tmp_path / "m")


def test_names_go_there_and_back_on_the_published_size():
    model = Decoder(preset("ling-coder-lite"), device="meta")
    released = to_released(model.state_dict())
    assert len(released) == 3 + 28 * (5 + 3 * (64 + 1))
    assert sum(t.numel() for t in released.values()) == parameter_count(model.config) == 16_801_974_272
    assert parameter_count(model.config, active=True) == 2_753_153_024
    back = from_released(released, model.config)
    assert {n: t.shape for n, t in back.items()} == {n: t.shape for n, t in model.state_dict().items()}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"num_experts_per_tok": 9}, "num_experts_per_tok is 9"),
        ({"num_experts_per_tok": None}, "num_experts_per_tok is 0"),
        ({"num_experts": None}, "no num_experts"),
        ({"moe_intermediate_size": 0}, "moe_intermediate_size is 0"),
        ({"first_k_dense_replace": 5}, "first_k_dense_replace is 5"),
        ({"use_bias": True}, "use_bias"),
        ({"use_qkv_bias": True}, "use_qkv_bias"),
        ({"score_function": "sigmoid"}, "score_function"),
        ({"use_qk_norm": True}, "use_qk_norm"),
        ({"routed_scaling_factor": 2.5}, "routed_scaling_factor"),
    ],
)
def test_configurations_that_cannot_be_are_refused(change, what):
    with pytest.raises(IqcError, match=what):
        ModelConfig.from_hf(preset("nano-experts").to_hf() | change)


def test_a_loop_of_experts_is_refused():
    with pytest.raises(IqcError, match="loop_num is 2 in a model of 5 experts"):
        ModelConfig(50, 24, 40, 2, 6, 2, 32, **EXPERTS, loop_num=2)
    with pytest.raises(IqcError, match="norm_head without experts"):
        ModelConfig(50, 24, 40, 2, 6, 2, 32, norm_head=True)


def test_a_cache_changes_nothing(tiny):
    model = tiny(1, **EXPERTS, norm_head=True).eval()
    prompts = [TOKENS[0].tolist(), TOKENS[1, :7].tolist()]
    for prompt, completion in zip(prompts, generate(model, prompts, max_new_tokens=8, temperature=0)):
        row = list(prompt)
        for token in completion.tokens:
            assert model.logits(model(torch.tensor([row])))[0, -1].argmax().item() == token
            row.append(token)


@pytest.mark.parametrize(("optimizer", "products"), [("adamw", None), ("muon", None), ("adamw", torch.bfloat16)])
def test_training_lowers_loss_and_tells_the_balance(optimizer, products):
    import numpy as np

    from iqc.tokens.loader import Batch
    from iqc.train.engines.local import Local
    from iqc.train.losses import NextToken
    from iqc.train.optimizer import make_optimizer
    from iqc.train.ranks import Ranks
    from iqc.train.step import update

    model = Decoder(ModelConfig(50, 24, 40, 2, 6, 2, 32, **EXPERTS, norm_head=True), seed=0).train()
    lengths = [np.array([13], np.int64)] * 2
    batch = Batch(TOKENS.numpy(), np.ones(TOKENS.shape, np.float32) * (np.arange(13) > 0), lengths)
    engine = Local(model, make_optimizer(model, 0.02, optimizer), Ranks(), 1.0, products)
    made = [update(engine, NextToken(), batch, 0.02, micro_rows=1) for _ in range(30)]
    assert made[-1]["loss"] < 0.8 * made[0]["loss"]
    assert all(1.9 < line["balance"] < 5.1 for line in made)
    expected = -model.eval().token_logprobs(TOKENS).sum().item() / 24
    model.train()
    engine.products = None
    assert update(engine, NextToken(), batch, 0.0)["loss"] == pytest.approx(expected, rel=1e-5)
