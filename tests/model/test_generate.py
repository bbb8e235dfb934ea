"""Generation with the cache against a full forward for every token."""

import pytest
import torch

from iqc.errors import IqcError
from iqc.model.cache import Cache
from iqc.model.generate import _sample, generate

SHAPES = [(1, 3), (2, 1), (2, 3), (2, 100), (3, 4)]  # (passes, window)
PROMPTS = [[3, 1, 4], [1], [5, 9, 2, 6, 5, 3, 5, 8, 9], [7, 9]]


@pytest.mark.parametrize(("loops", "window"), SHAPES)
def test_cache_equals_full_recompute_token_by_token(tiny, loops, window):
    """Ragged prompts; log-probabilities of forced tokens, so that every step is compared, not only the choices."""
    model = tiny(loops, window)
    g = torch.Generator().manual_seed(0)
    text = torch.randint(50, (4, 20), generator=g)
    lengths = [3, 1, 9, 2]  # of the prompts; padded to 9 at the left
    real = torch.arange(9) >= 9 - torch.tensor(lengths)[:, None]
    tokens = torch.zeros(4, 9, dtype=torch.int64)
    for b, n in enumerate(lengths):
        tokens[b, 9 - n :] = text[b, :n]
    with torch.no_grad():
        cache = Cache(model.config, real, 20, torch.float64)
        for step in range(8):
            hidden = model.model(tokens, cache.documents, cache)[:, -1]
            for b, n in enumerate(lengths):
                whole = model(text[b : b + 1, : n + step])[0, -1]
                torch.testing.assert_close(hidden[b], whole, rtol=0, atol=1e-10)
            tokens = torch.stack([text[b, n + step] for b, n in enumerate(lengths)])[:, None]
            cache.advance()


def test_a_later_pass_keeps_its_window_only(tiny):
    cache = Cache(tiny(2, 3).config, torch.ones(1, 5, dtype=torch.bool), 64, torch.float32)
    assert cache.full.shape[-2] == 64
    assert cache.rings.shape[-2] == 3


@pytest.mark.parametrize("loops", [1, 2])
@pytest.mark.parametrize("cut", [{}, {"top_k": 5}, {"top_p": 0.7}, {"top_k": 9, "top_p": 0.8}, {"temperature": 0.0}])
def test_a_completion_does_not_depend_on_its_batch(tiny, loops, cut):
    model = tiny(loops)
    seeds = [11, 12, 13, 14]
    together = generate(model, PROMPTS, max_new_tokens=12, seeds=seeds, **cut)
    for prompt, seed, completion in zip(PROMPTS, seeds, together):
        (alone,) = generate(model, [prompt], max_new_tokens=12, seeds=[seed], **cut)
        assert alone.tokens == completion.tokens
        assert alone.logprobs == pytest.approx(completion.logprobs, abs=1e-5)


@pytest.mark.parametrize("loops", [1, 2])
def test_log_probabilities_are_the_models_own(tiny, loops):
    model = tiny(loops)
    for prompt, c in zip(
        PROMPTS, generate(model, PROMPTS, max_new_tokens=10, temperature=0.5, top_k=6, seeds=range(4))
    ):
        with torch.no_grad():
            scores = model.token_logprobs(torch.tensor([prompt + c.tokens]))[0, len(prompt) :]
        assert c.logprobs == pytest.approx(scores.tolist(), abs=1e-5)


def test_stop_tokens_end_rows_and_the_rest_goes_on_unchanged(tiny):
    """Rows leave the batch as they finish, so this also compares a batch that shrinks with one that does not."""
    model = tiny(2)
    prompts = [[i] for i in range(1, 17)]
    free = generate(model, prompts, max_new_tokens=15)
    stop = [3, 4, 17, 20, 31]
    ended = generate(model, prompts, max_new_tokens=15, stop=stop)
    assert {c.finish_reason for c in ended} == {"stop", "length"}
    for a, b in zip(free, ended):
        where = next((i + 1 for i, t in enumerate(a.tokens) if t in stop), None)
        assert b.tokens == a.tokens[:where]
        assert b.finish_reason == ("length" if where is None else "stop")
        assert len(b.logprobs) == len(b.tokens)


def test_greedy_takes_the_best(tiny):
    model = tiny(2)
    (c,) = generate(model, [[3, 1, 4]], max_new_tokens=6, temperature=0)
    text = [3, 1, 4]
    for token in c.tokens:
        assert token == model.logits(model(torch.tensor([text])))[0, -1].argmax().item()
        text.append(token)


def sample(scores, n=20_000, **options):
    kw = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | options
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(0))
    drawn = _sample(torch.tensor(scores).expand(n, -1), kw["temperature"], kw["top_k"], kw["top_p"], uniform)
    return torch.bincount(drawn, minlength=len(scores)) / n


P = torch.tensor([0.1, 0.4, 0.2, 0.3])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, P),
        ({"temperature": 0.5}, P**2 / (P**2).sum()),
        ({"top_k": 2}, torch.tensor([0, 4 / 7, 0, 3 / 7])),
        ({"top_p": 0.65}, torch.tensor([0, 4 / 7, 0, 3 / 7])),
        ({"top_p": 0.75}, torch.tensor([0, 4 / 9, 2 / 9, 3 / 9])),
        ({"top_k": 3, "top_p": 0.7}, torch.tensor([0, 4 / 7, 0, 3 / 7])),  # 0.4 + 0.3 of 0.9 reach 0.7
        ({"top_p": 1e-6}, torch.tensor([0.0, 1, 0, 0])),
    ],
)
def test_sampled_frequencies(options, expected):
    # 20,000 draws: three standard deviations are at most 3 * sqrt(0.25 / 20000) = 0.011
    torch.testing.assert_close(sample(P.log().tolist(), **options), expected, rtol=0, atol=0.011)


def test_a_nucleus_wider_than_the_first_candidates():
    """Flat scores over 400 tokens: top_p 0.5 needs 200 of them, more than are sorted at first."""
    scores = (torch.arange(400) % 2 * 0.01).tolist()
    assert int((sample(scores, n=4_000, top_p=0.5) > 0).sum()) == pytest.approx(199, abs=2)
    assert int((sample(scores, n=4_000, top_p=0.99) > 0).sum()) == pytest.approx(396, abs=2)


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2**-24])
def test_the_ends_of_the_unit_interval_draw_tokens_of_some_mass(uniform):
    scores = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf]])
    for options in ((1.0, 0, 1.0), (1.0, 3, 1.0), (1.0, 0, 0.5)):
        assert _sample(scores, *options, torch.tensor([uniform])).item() in (1, 2)


@pytest.mark.parametrize(
    ("prompts", "options"),
    [
        ([[]], {"max_new_tokens": 1}),
        ([[1] * 120], {"max_new_tokens": 9}),
        ([[1]], {"max_new_tokens": 1, "top_p": 0.0}),
        ([[1]], {"max_new_tokens": 1, "temperature": -1.0}),
        ([[1]], {"max_new_tokens": 1, "seeds": [1, 2]}),
    ],
)
def test_wrong_requests_are_refused(tiny, prompts, options):
    with pytest.raises(IqcError):
        generate(tiny(), prompts, **options)


def test_no_prompts_no_completions(tiny):
    assert generate(tiny(), [], max_new_tokens=4) == []
