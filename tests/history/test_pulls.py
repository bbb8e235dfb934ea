"""Pull requests from exports in the layouts of GH Archive and the REST API, joined with repositories made here."""

import gzip
import json
import re

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from iqc.errors import BadRecord, IqcError
from iqc.history.names import Names
from iqc.history.pulls import Options, pulls
from iqc.history.threads import cut, linked, read_export
from iqc.streams.stage import Dropped

API = "https://api.github.com/repos/o/r"


def body(k, n=12):
    return "".join(f"def f{k}_{i}(x):\n    return x + {i}\n\n\n" for i in range(n))


def user(login, kind="User"):
    return {"login": login, "type": kind}


def pull(number, **more):
    """A pull request as /pulls has it."""
    return {
        "url": f"{API}/pulls/{number}",
        "issue_url": f"{API}/issues/{number}",
        "number": number,
        "title": f"Add the module number {number}",
        "body": "It was needed.",
        "user": user("alice"),
        "state": "closed",
        "labels": [{"name": "bug"}],
        "created_at": "2024-01-01T00:00:00Z",
        "updated_at": "2024-01-09T00:00:00Z",
        "merged_at": "2024-01-09T00:00:00Z",
        "merge_commit_sha": None,
        "head": {"ref": "patch-1", "sha": "0" * 40},
        "base": {"ref": "main", "sha": "0" * 40},
    } | more


def issue(number, **more):
    return {
        "url": f"{API}/issues/{number}",
        "number": number,
        "title": f"The module number {number} is missing",
        "body": "Please add it.",
        "user": user("carol"),
        "state": "closed",
        "created_at": "2023-12-01T00:00:00Z",
        "updated_at": "2024-01-09T00:00:00Z",
    } | more


def comment(number, key, who, text, day=2, **more):
    time = f"2024-01-{day:02}T00:00:00Z"
    return {
        "url": f"{API}/issues/comments/{key}",
        "issue_url": f"{API}/issues/{number}",
        "id": key,
        "user": user(who),
        "body": text,
        "created_at": time,
        "updated_at": time,
    } | more


def review_comment(number, key, who, text, day=3, **more):
    at = {"pull_request_url": f"{API}/pulls/{number}", "path": "m1.py", "diff_hunk": "@@ -1 +1 @@\n-a\n+b"}
    return {k: v for k, v in comment(number, key, who, text, day).items() if k != "issue_url"} | at | more


def review(number, key, who, text, state="APPROVED", day=4):
    time = f"2024-01-{day:02}T00:00:00Z"
    at = {"pull_request_url": f"{API}/pulls/{number}", "state": state, "submitted_at": time}
    return {"id": key, "user": user(who), "body": text} | at


def event(kind, payload, time="2024-01-05T00:00:00Z", repo="o/r"):
    return {
        "id": "1",
        "type": kind,
        "actor": {"login": "x"},
        "repo": {"name": repo},
        "payload": payload,
        "created_at": time,
    }


@pytest.fixture
def export(tmp_path):
    def write(*objects, name="export.jsonl"):
        path = tmp_path / name
        lines = [item if isinstance(item, str) else json.dumps(item) for item in objects]
        path.write_text("".join(line + "\n" for line in lines))
        return Options(name="o/r", export=(str(path),))

    return write


@pytest.fixture
def repo(work):
    """A merge commit, a squash, two rebased commits and a branch that was never merged; their ids by name."""
    ids = {}
    work.write("m0.py", body(0))
    ids["root"] = work.commit("Add the first module of all")
    work.git("checkout", "-q", "-b", "one")
    work.write("m1.py", body(1))
    work.commit("wip")
    work.write("m1.py", body(1) + body(11))
    ids["one"] = work.commit("more")
    work.git("checkout", "-q", "main")
    work.git("merge", "-q", "--no-ff", "-m", "Merge pull request #1 from alice/patch-1\n\nAdd one\n\nFixes #7", "one")
    ids["merge"] = work.git("rev-parse", "HEAD").decode().strip()
    work.write("m2.py", body(2))
    ids["squash"] = work.commit("Add the module number 2 (#2)\n\nCo-authored-by: Alice A <alice@example.org>\n")
    work.write("m3.py", body(3))
    ids["first"] = work.commit("Begin the module of three")
    work.write("m3.py", body(3) + body(33))
    ids["rebase"] = work.commit("Finish the module of three")
    work.git("checkout", "-q", "-b", "four", ids["squash"])
    work.write("m4.py", body(4))
    ids["four"] = work.commit("Add a fourth module")
    work.git("checkout", "-q", "main")
    return work, ids


def split(items):
    items = list(items)
    return [i for i in items if not isinstance(i, Dropped)], [i for i in items if isinstance(i, Dropped)]


def test_every_way_to_merge(repo, export, git_apply, state):
    work, ids = repo
    options = export(
        pull(1, merge_commit_sha=ids["merge"], commits=2),
        pull(2, merge_commit_sha=None),
        pull(3, merge_commit_sha=ids["rebase"], commits=2, title="Add the third module"),
        pull(4, merged_at=None, state="open", head={"ref": "four", "sha": ids["four"]}),
        pull(5, merge_commit_sha="f" * 40, head={"ref": "x", "sha": "--output=/tmp/x"}),
        pull(6, head={"ref": "x", "sha": "e" * 40}),
        pull(8, merge_commit_sha=ids["root"]),
        pull(10, merge_commit_sha=ids["four"], base={"ref": "release", "sha": ids["squash"]}),
    )
    kept, dropped = split(pulls(work.place, options))
    assert [(item.record["id"], item.rule) for item in dropped] == [
        ("o/r#5", "pulls.no_commit"),
        ("o/r#6", "pulls.no_commit"),
        ("o/r#8", "pulls.root"),
    ]
    assert [(r["pull"]["number"], r["metadata"]["found"]) for r in kept] == [
        (1, "merge_commit"),
        (2, "message"),
        (3, "rebase"),
        (4, "head"),
        (10, "merge_commit"),
    ]
    assert [(r["old"]["commit"], r["new"]["commit"]) for r in kept] == [
        (ids["root"], ids["merge"]),
        (ids["merge"], ids["squash"]),
        (ids["squash"], ids["rebase"]),
        (ids["squash"], ids["four"]),
        (ids["squash"], ids["four"]),
    ]
    for record in kept:
        assert git_apply(record) == state(record["new"]) != state(record["old"])
    assert [(r["pull"]["merged"], r["pull"]["state"]) for r in kept] == [
        *[(True, "closed")] * 3,
        (False, "open"),
        (True, "closed"),
    ]
    assert kept[2]["messages"] == ["Begin the module of three", "Finish the module of three"]
    assert kept[1]["messages"] == ["Add the module number 2 (#2)"]
    assert kept[0]["messages"] == ["Merge pull request #1 from user_0/patch-1\n\nAdd one\n\nFixes #7"]


def conversation(ids):
    text = {"title": "Add one module", "body": "As @bob said. Closes: #7, resolves o/r#9, fixes other/x#8."}
    return [
        pull(1, merge_commit_sha=ids["merge"]) | text,
        issue(7, body="See `@bob.setter` and _@alice_, mail me@bob.org"),
        issue(8),
        issue(9, title="Another", body=None),
        issue(1, pull_request={"url": f"{API}/pulls/1"}, user=user("alice")) | text,
        comment(7, 70, "bob", "I need it too, @Carol"),
        comment(1, 12, "bob", "Nice, @dave! `@dataclass` ```\n@alice @pytest.fixture\n```", day=5),
        comment(1, 10, "ci-runner[bot]", "Coverage fell"),
        comment(1, 11, "someone", "deploy", user=user("deployer", "Bot")),
        review_comment(1, 20, "bob", "Why?"),
        review(1, 30, "bob", "Good", day=6),
        review(1, 31, "bob", "", state="COMMENTED", day=6),
        review(1, 32, "carol", None, state="CHANGES_REQUESTED", day=1),
    ]


def test_a_conversation(repo, export):
    work, ids = repo
    ((record,), _) = split(pulls(work.place, export(*conversation(ids))))
    assert record["pull"]["body"] == "As @user_1 said. Closes: #7, resolves o/r#9, fixes other/x#8."
    assert record["pull"]["author"] == "user_0" and record["pull"]["labels"] == ["bug"]
    assert [(i["number"], i["title"], i["author"]) for i in record["issues"]] == [
        (7, "The module number 7 is missing", "user_2"),
        (9, "Another", "user_2"),
    ]
    assert record["issues"][0]["body"] == "See `@user_1.setter` and _@user_0_, mail user@example.org"
    assert record["issues"][0]["comments"] == [
        {"author": "user_1", "body": "I need it too, @user_2", "time": "2024-01-02T00:00:00Z"}
    ]
    assert [(n["kind"], n["author"], n["verdict"]) for n in record["discussion"]] == [
        ("review", "user_2", "changes_requested"),
        ("review_comment", "user_1", None),
        ("comment", "user_1", None),
        ("review", "user_1", "approved"),
    ]
    assert record["discussion"][1]["path"] == "m1.py" and record["discussion"][1]["hunk"].startswith("@@")
    assert record["discussion"][2]["body"] == "Nice, @user_3! `@dataclass` ```\n@user_0 @pytest.fixture\n```"
    assert record["metadata"]["bot_comments"] == 2


def as_events(objects):
    """The same as GH Archive had it until October 2025."""
    whole = {item["number"]: item for item in objects if "title" in item}
    for item in objects:
        time = item.get("updated_at") or item.get("submitted_at")
        number = item.get("number") or int(re.search(r"(\d+)$", item.get("issue_url") or item["pull_request_url"])[1])
        if "head" in item:
            yield event("PullRequestEvent", {"action": "closed", "number": number, "pull_request": item}, time)
        elif "title" in item:
            yield event("IssuesEvent", {"action": "closed", "issue": item}, time)
        elif "diff_hunk" in item:
            payload = {"action": "created", "comment": item, "pull_request": whole[number]}
            yield event("PullRequestReviewCommentEvent", payload, time)
        elif "submitted_at" in item:
            review = item | {"state": item["state"].lower()}
            payload = {"action": "created", "review": review, "pull_request": {"number": number}}
            yield event("PullRequestReviewEvent", payload, time)
        else:
            yield event("IssueCommentEvent", {"action": "created", "comment": item, "issue": whole[number]}, time)


@pytest.mark.parametrize("order", [1, -1])
def test_events_say_what_objects_say(repo, export, order):
    work, ids = repo
    objects = conversation(ids)
    (record,), _ = split(pulls(work.place, export(*objects)))
    events = [*as_events(objects), event("PushEvent", {"commits": []}), event("WatchEvent", {"action": "started"})]
    events += [event("IssuesEvent", {"action": "opened", "issue": issue(7, body="elsewhere")}, repo="o/other")]
    assert split(pulls(work.place, export(*events[::order])))[0] == [record]
    assert split(pulls(work.place, export(*objects[::-1])))[0] == [record]
    assert split(pulls(work.place, export(*objects, *events, *objects)))[0] == [record]


def test_events_since_october_2025_have_no_text(repo, export):
    work, _ = repo
    thin = {
        "url": f"{API}/pulls/2",
        "id": 1,
        "number": 2,
        "head": {"ref": "p", "sha": "1" * 40},
        "base": {"ref": "main"},
    }
    objects = [event("PullRequestEvent", {"action": "merged", "number": 2, "pull_request": thin})]
    ((record,), _) = split(pulls(work.place, export(*objects)))
    assert (record["pull"]["title"], record["pull"]["body"]) == ("Add the module number 2", "")
    assert record["pull"]["merged"] and record["pull"]["state"] == "closed" and record["pull"]["head"]["ref"] == "p"
    about = issue(2, title="A title from a comment", body="And a body", pull_request={"url": f"{API}/pulls/2"})
    said = event("IssueCommentEvent", {"action": "created", "issue": about, "comment": comment(2, 5, "bob", "Yes")})
    ((record,), _) = split(pulls(work.place, export(*objects, said)))
    assert (record["pull"]["title"], record["pull"]["body"]) == ("A title from a comment", "And a body")


def test_the_last_state_wins(repo, export):
    work, ids = repo
    first = pull(1, title="An early title", state="open", merged_at=None, updated_at="2024-01-01T00:00:00Z")
    last = pull(1, merge_commit_sha=ids["merge"])
    gone = comment(1, 10, "bob", "Never mind")
    removed = event("IssueCommentEvent", {"action": "deleted", "issue": last, "comment": gone}, "2024-02-01T00:00:00Z")
    edited = comment(1, 11, "bob", "After", updated_at="2024-01-08T00:00:00Z")
    objects = [first, last, gone, removed, comment(1, 11, "bob", "Before"), edited]
    for lines in (objects, objects[::-1]):
        ((record,), _) = split(pulls(work.place, export(*lines)))
        assert record["pull"]["title"] == "Add the module number 1" and record["pull"]["merged"]
        assert [note["body"] for note in record["discussion"]] == ["After"]


@pytest.mark.parametrize(
    ("rule", "more"),
    [
        ("title_chars", {"title": "Fix"}),
        ("title_chars", {"title": "x" * 501}),
        ("bot", {"user": user("renovate", "Bot")}),
        ("bot", {"user": user("dependabot[bot]")}),
        ("no_commit", {"number": 99, "url": f"{API}/pulls/99"}),
    ],
)
def test_a_pull_request_is_dropped_by_its_rule(repo, export, rule, more):
    work, _ = repo
    kept, dropped = split(pulls(work.place, export(pull(2) | more)))
    assert kept == [] and [item.rule for item in dropped] == [f"pulls.{rule}"]


def test_what_is_too_little_or_missing(repo, export, work):
    _, ids = repo
    work.write("m0.py", body(0) + "x")
    work.commit("Add x (#9)")
    _, dropped = split(pulls(work.place, export(pull(9, title="Add one x", body=""))))
    assert [item.rule for item in dropped] == ["pulls.title_chars"]
    oid = work.git("rev-parse", f"{ids['squash']}:m2.py").decode().strip()
    (work.place / ".git/objects" / oid[:2] / oid[2:]).unlink()
    kept, dropped = split(pulls(work.place, export(pull(1), pull(2))))
    assert [item.rule for item in dropped] == ["pulls.missing_object"] and len(kept) == 1


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"url": ', "not JSON"),
        ("[1, 2]", "list"),
        ('{"a": 1, "b": 2}', "with the fields a, b"),
        ('{"url": "https://api.github.com/users/alice"}', "neither"),
        ('{"title": "\\ud800"}', "not JSON"),
        ("\x00\x01", "binary"),
        (json.dumps({"url": f"{API}/pulls/{'9' * 5000}", "title": "x"}), "neither"),
    ],
)
def test_a_bad_line_is_an_error_with_its_place(repo, export, line, says):
    work, _ = repo
    options = export(pull(1), "", line)
    with pytest.raises(BadRecord, match=says) as caught:
        list(pulls(work.place, options))
    assert caught.value.where == f"{options.export[0]}:3" and caught.value.remedy
    bad = []
    assert read_export(options.export, ["o/r"], skip_bad=True, bad=bad)["o/r"][1].pull
    assert [error.where for error in bad] == [f"{options.export[0]}:3"]


odd = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10) | st.sampled_from(["", "o/r", "closed", f"{API}/pulls/1", "@a"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["login", "name", "sha", "ref"]), inner)
    ),
    max_leaves=4,
)
FIELDS = [*pull(1), *comment(1, 1, "a", "b"), "diff_hunk", "path", "pull_request_url", "submitted_at", "pull_request"]


@given(st.dictionaries(st.sampled_from(FIELDS), odd), st.sampled_from([None, "PullRequestEvent", "IssueCommentEvent"]))
def test_no_object_breaks_the_reader(tmp_path_factory, fields, kind):
    """Whatever types the fields have: it is read, or a bad record."""
    record = fields if kind is None else event(kind, {"pull_request": fields, "comment": fields, "number": 1})
    path = tmp_path_factory.mktemp("odd") / "export.jsonl"
    path.write_text(json.dumps(record))
    try:
        threads = read_export([str(path)], ["o/r"])["o/r"]
    except BadRecord:
        return
    for thread in threads.values():
        thread.said()


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.ZstdCompressor().compress])
def test_compressed_exports_and_several_repositories(tmp_path, compress):
    lines = [
        pull(1),
        event("IssuesEvent", {"issue": issue(3)}, repo="O/R"),
        event("IssuesEvent", {"issue": issue(4)}, repo="p/q"),
    ]
    path = tmp_path / "export.json"
    path.write_bytes(compress("\n".join(map(json.dumps, lines)).encode()))
    found = read_export([str(path)], ["o/r", "q", "z/z"])
    assert {name: sorted(threads) for name, threads in found.items()} == {"o/r": [1, 3], "q": [4], "z/z": []}
    path.write_text(
        json.dumps(event("IssuesEvent", {"issue": issue(4)}, repo="p/q"))
        + "\n"
        + json.dumps(event("IssuesEvent", {"issue": issue(4)}, repo="s/q"))
    )
    with pytest.raises(IqcError, match="q"):
        read_export([str(path)], ["q"], skip_bad=True)


def test_links_are_githubs():
    text = "close #1 Closes #2 CLOSED: #3 fix #4 fixes o/r#5 Fixed https://github.com/O/R/issues/6 resolve #7\n"
    text += "resolves #8 resolved #9"
    assert linked(text, "o/r") == list(range(1, 10))
    assert (
        linked("see #1, prefix #2, fixes a/b#3, closes https://github.com/a/b/issues/4, fixing #5, fixes#6", "o/r")
        == []
    )


@given(st.text(alphabet="ab\n \r", max_size=3000))
def test_texts_are_cut(text):
    short = cut(text)
    assert len(short) <= 1000 and short.count("\n") < 80
    assert text.replace("\r\n", "\n").strip().startswith(short)


@given(
    st.lists(
        st.sampled_from(["@alice", "@Bob-1", "`@alice`", "a@alice", "@property", " ", "\n", ".", "```"]), max_size=12
    ).map("".join)
)
def test_no_mention_of_somebody_who_takes_part_is_left(text):
    names = Names({"alice", "bob-1"})
    out = names.text(text)
    assert not re.search(r"(?<![A-Za-z0-9@/.-])@(?:alice|Bob-1)(?![A-Za-z0-9/])", out)
    assert out.count("\n") == text.count("\n")
    assert names.of("ALICE") == names.of("alice") != names.of("bob-1")


def test_what_is_no_mention_stays():
    names = Names({"alice"})
    for text in ("`@property`", "`me@alice.org`", "npm i @types/node", "```\n@dataclass\nclass A: ...\n```", "alice"):
        assert names.text(text) == text
    assert (
        names.text("https://github.com/Alice/x and github.com/o/r") == "https://github.com/user_0/x and github.com/o/r"
    )
    assert names.text("mail First.Last+x@mail.example.com!") == "mail user@example.org!"
    assert names.words("Alice-patch-1") == "user_0-patch-1" and names.words("malice") == "malice"
    assert names.code("# TODO: @alice\n@dataclass") == "# TODO: @user_0\n@dataclass"
    assert names.message("Fix it\n\nSigned-off-by: Al Ice <al@ice>\nReviewed-by: B <b>") == "Fix it"


def test_a_damaged_commit_costs_one_pull_request(repo, export):
    """Of rebased commits one tree is lost: the others are found."""
    work, ids = repo
    tree = work.git("rev-parse", ids["squash"] + "^{tree}").decode().strip()
    (work.place / ".git/objects" / tree[:2] / tree[2:]).unlink()
    rows = [
        pull(1, merge_commit_sha=ids["merge"]),
        pull(2, merge_commit_sha=ids["squash"]),
        pull(3, merge_commit_sha=ids["rebase"], commits=2, title="Add the third module"),
        pull(4, merged_at=None, head={"ref": "four", "sha": ids["four"]}),
    ]
    kept, dropped = split(pulls(work.place, export(*rows)))
    assert [record["pull"]["number"] for record in kept] == [1]
    assert [item.record["id"] for item in dropped] == ["o/r#2", "o/r#3", "o/r#4"]
    assert {item.rule for item in dropped} <= {"pulls.damaged", "pulls.missing_object"}


@pytest.mark.parametrize("number", [True, -1, 0, 10**25, "1", None, 1.0])
def test_a_number_that_is_none(tmp_path, number):
    path = tmp_path / "e.jsonl"
    path.write_text(json.dumps(event("IssuesEvent", {"action": "opened", "issue": issue(1) | {"number": number}})))
    assert read_export([str(path)], ["o/r"], skip_bad=True) == {"o/r": {}}
