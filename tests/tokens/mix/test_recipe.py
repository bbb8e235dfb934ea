"""Recipes: what a file says, what options replace, and where a wrong one is wrong."""

import pytest

from iqc.errors import UsageError
from iqc.tokens.mix.recipe import Difficulty, Phase, Recipe, Wish, amount_of, difficulty_of, name_sources, sources_of
from iqc.tokens.mix.recipe_file import RecipeFile

WHOLE = """
by = "records"
total = "1.5k"
max_epochs = 4
short = "rescale"
languages = {python = 2, "*" = 1}

[source.code]
path = "code.zst"
weight = 3

[source."odd name"]
weight = 1
languages = {rust = 1}

[source.old]
replay = 0.05

[difficulty]
field = "metadata.score"
bounds = ["33%", "67%"]
bands = ["easy", "medium", "hard"]

[[phase]]
share = 0.4
difficulty = {easy = 0.7, hard = 0.3}

[[phase]]
share = 0.6
weights = {code = 1}
"""


def test_a_file_says_all_that_a_recipe_has(tmp_path):
    (tmp_path / "m.toml").write_text(WHOLE)
    recipe, paths = RecipeFile(str(tmp_path / "m.toml")).recipe()
    wishes = {"code": Wish(weight=3), "odd name": Wish(weight=1, languages={"rust": 1}), "old": Wish(replay=0.05)}
    difficulty = Difficulty("metadata.score", [0.33, 0.67], ["easy", "medium", "hard"], True)
    phases = [Phase(0.4, difficulty={"easy": 0.7, "hard": 0.3}), Phase(0.6, {"code": 1})]
    languages = {"python": 2, "*": 1}
    assert recipe == Recipe(wishes, "records", 1500, 4, "rescale", None, languages, None, difficulty, phases)
    assert paths == {"code": str(tmp_path / "code.zst")}


@pytest.mark.parametrize(
    ("old", "new", "line", "what"),
    [
        ("weight = 3", "wait = 3", 10, "source.code.wait is unknown"),
        ("weight = 3", "weight = -3", 10, "source.code.weight is -3"),
        ("weight = 3", 'weight = "3"', 10, "source.code.weight is '3'"),
        ("weight = 3", "weight = nan", 10, "source.code.weight is nan"),
        ("weight = 3", "weight = 3\nepochs = 1", 8, "source.code has more than one of"),
        ("replay = 0.05", "replay = 1.5", 17, "source.old.replay is 1.5"),
        ("{rust = 1}", "{rust = 0}", 14, "source.odd name.languages is"),
        ('by = "records"', 'by = "words"', 2, "by is 'words'"),
        ("{easy = 0.7", "{simple = 0.7", 26, 'phase#1.difficulty names "simple"'),
        ('total = "1.5k"', 'total = "5x"', 3, "total is '5x'"),
        ('total = "1.5k"', "total = -5", 3, "total is -5"),
        ("{code = 1}", "{old = 1}", 30, 'phase#2.weights names "old", which replays'),
        ("{code = 1}", "{core = 1}", 30, 'phase#2.weights names "core", which is no source'),
        ("share = 0.6\n", "", 28, "phase#2 needs a share"),
        ('["33%", "67%"]', '["67%", "33%"]', 21, "difficulty.bounds bounds 67%, 33%"),
        ('"medium", ', "", 22, "has 2 names for 3 bands"),
        ("[source.old]", "[source.old", 16, "no TOML"),
        ("[difficulty]", "[curriculum]", 19, "curriculum is unknown"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path, old, new, line, what):
    assert old in WHOLE
    path = tmp_path / "m.toml"
    path.write_text(WHOLE.replace(old, new, 1))
    with pytest.raises(UsageError) as found:
        RecipeFile(str(path)).recipe()
    assert what in found.value.what and found.value.where == f"{path}:{line}"


def test_amounts():
    assert [amount_of(text) for text in ("7", "500k", "1.5B", "2G", "0.3T")] == [
        7,
        500_000,
        15 * 10**8,
        2 * 10**9,
        3 * 10**11,
    ]
    for wrong in ("", "0", "-1", "1e9", "1 k", "5X", "999999T"):
        with pytest.raises(UsageError):
            amount_of(wrong)


def test_bounds_are_scores_or_quantiles():
    assert difficulty_of("s", ["-1", "2.5"]).bounds == [-1, 2.5]
    for wrong in ([""], ["1", "1"], ["50%", "2"], ["0%"], ["100%"], ["nan"]):
        with pytest.raises(UsageError):
            difficulty_of("s", wrong)


def test_sources_are_named(tmp_path):
    assert name_sources(["a.jsonl.zst", "x=b.zst", "dir/"]) == {"a": "a.jsonl.zst", "x": "b.zst", "dir": "dir/"}
    odd = tmp_path / "a=b.zst"
    odd.touch()
    assert name_sources([str(odd)]) == {"a=b": str(odd)}
    for wrong in (["a.zst", "a=b.zst"], ["=b"], ["a="]):
        with pytest.raises(UsageError):
            name_sources(wrong)


def test_sources_have_a_path_each():
    recipe = Recipe({"a": Wish(1), "b": Wish(0)})
    assert sources_of(recipe, {"a": "1"}, ["a=2"]) == {"a": "2"}
    assert recipe.checked({"a": "2"}) is recipe
    with pytest.raises(UsageError, match="source a has no file"):
        recipe.checked({})
    with pytest.raises(UsageError, match="the recipe has no source c"):
        sources_of(recipe, {"a": "1"}, ["c=2"])


@pytest.mark.parametrize("stage", ["mid-32k", "mid-128k"])
def test_the_published_mixtures_add_up(repo, stage):
    recipe, _ = RecipeFile(str(repo / "recipes" / f"{stage}.toml")).recipe()
    assert sum(wish.weight for wish in recipe.wishes.values()) * 10**9 == recipe.total == 300 * 10**9


def test_a_published_mixture_of_small_streams(repo, iqc, make_stream, tmp_path):
    names = ("reasoning", "agent", "commit", "file", "repository", "stage1")
    streams = [
        f"{name}={make_stream(tmp_path / f'{name}.zst', [{'id': f'{name}-{n}', 'text': 'x' * n} for n in range(60)])}"
        for name in names
    ]
    recipe = repo / "recipes" / "mid-32k.toml"
    out, page = tmp_path / "out.zst", tmp_path / "page.html"
    options = ("--by", "records", "--total", "600", "--max-epochs", "9", "--report", page, "-q", "-o", out)
    done = iqc("mix", "--recipe", recipe, *streams, *options)
    assert done.returncode == 0, done.stderr
    ids = iqc("head", "-n", "all", "--plain", "-q", out).stdout.decode().splitlines()
    found = [sum(f'"id":"{name}-' in line for line in ids) for name in names]
    wanted = [600 * weight / 300 for weight in (175, 10, 5, 35, 5, 70)]
    assert all(abs(one - other) <= 1 for one, other in zip(found, wanted))
    text = page.read_text()
    assert text.count("<polygon") == 6 and "58.33%" in text  # 175 of 300


@pytest.mark.parametrize(
    ("recipe", "what"),
    [
        (Recipe({"a": Wish(1)}, temperature=2.0), "a temperature and weights"),
        (Recipe({"a": Wish(0)}), "no source has a weight above 0"),
        (Recipe({"a": Wish(epochs=1, languages={"go": 1})}), "languages without a weight"),
        (Recipe({"a": Wish(replay=0.1), "b": Wish(0)}), "replay alone"),
        (Recipe({"a": Wish()}, languages={"go": 0}), "the shares of all languages are 0"),
        (Recipe({"a": Wish()}, languages={"go": 1}, language_temperature=2.0), "a temperature of languages"),
        (Recipe({"a": Wish()}, phases=[Phase(1, difficulty={"easy": 1})]), "a phase has shares of difficulty"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(recipe, what):
    with pytest.raises(UsageError, match=what):
        recipe.checked({"a": "a.zst"})


def test_options_replace_what_a_recipe_says(repo, iqc, make_stream, tmp_path):
    """All but one source of a published mixture are left out, and need no file then."""
    stream = make_stream(tmp_path / "s.zst", [{"id": str(n), "text": "x" * n} for n in range(60)])
    none = [f"--weight={name}=0" for name in ("reasoning", "agent", "commit", "file", "repository")]
    options = ("--by", "records", "--epochs", "stage1=1", "--total", "60", "--plain", "-q")
    done = iqc("mix", "--recipe", repo / "recipes" / "mid-128k.toml", f"stage1={stream}", *none, *options)
    assert done.stdout.count(b"\n") == 60, done.stderr
    done = iqc("mix", f"a={stream}", "--weight", "a=1", "--replay", "a=0.1", "--plain")
    assert done.returncode == 2 and b"more than one of --weight, --epochs and --replay" in done.stderr
    done = iqc("mix", f"a={stream}", "--weight", "a=1", "--weight", "a=2", "--plain")
    assert done.returncode == 2 and b"a has 1 already" in done.stderr
