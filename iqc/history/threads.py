"""Issues and pull requests from a JSONL export, one object a line, in the layouts that GitHub's data comes in.

Read are the events of GH Archive (pull requests, issues, their comments, reviews and review comments; other events are
passed over) and the objects of the REST API (/pulls, /issues, /issues/N/comments, /pulls/N/comments,
/pulls/N/reviews), mixed as they come, plain, gzip or zstd. Since October 2025 events name a pull request by number and
commits alone, without title or body: what one object lacks is taken from another that has it, of two that say
different things the later one is believed.

Only what belongs to the named repositories is kept, with texts cut as `pulls.toml` says, in one pass.
"""

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from iqc.errors import BadRecord
from iqc.history.inputs import Asked
from iqc.streams.reader import open_inputs
from iqc.streams.worker import parse

_URL = re.compile(r"/repos/([^/]+/[^/]+)/(?:pulls|issues)/(\d{1,9})(?!\d)")
_STATES = {"opened": "open", "reopened": "open", "closed": "closed", "merged": "closed"}  # what an action makes of it

_VERDICTS = ("approved", "changes_requested", "dismissed")  # a review that only holds comments says nothing itself


@cache
def table() -> dict[str, Any]:
    return tomllib.loads((files("iqc.history") / "pulls.toml").read_text(encoding="utf-8"))


@dataclass(slots=True)
class Note:
    """Something said on an issue or pull request: a comment, a review, or a review_comment on a hunk of a file."""

    kind: str
    author: str
    bot: bool
    body: str
    time: str
    path: str | None = None
    hunk: str | None = None
    verdict: str | None = None  # of a review: approved, changes_requested, dismissed, commented


@dataclass(slots=True)
class Thread:
    """An issue or a pull request. `facts` are what objects said of it, each with the time at which it was true."""

    number: int
    pull: bool = False
    facts: dict[str, tuple[str, Any]] = field(default_factory=dict)
    notes: dict[tuple[str, int], tuple[str, Note | None]] = field(default_factory=dict)  # None: deleted
    links: set[int] = field(default_factory=set)  # numbers of this repository's issues that it says it closes

    def get(self, name: str, default: Any = None) -> Any:
        return self.facts[name][1] if name in self.facts else default

    def learn(self, time: str, /, **facts: Any) -> None:
        for name, value in facts.items():
            if value is not None and (name not in self.facts or time >= self.facts[name][0]):
                self.facts[name] = (time, value)

    def said(self) -> list[Note]:
        """The notes in the order of their times."""
        kept = [(note.time, key, note) for key, (_, note) in self.notes.items() if note is not None]
        return [note for _, _, note in sorted(kept, key=lambda item: item[:2])]


Threads = dict[int, Thread]


def read_export(
    names: Sequence[str],
    repositories: Sequence[str],
    skip_bad: bool = False,
    bad: list[BadRecord] | None = None,
) -> dict[str, Threads]:
    """The issues and pull requests of each repository, by number, from export files.

    A repository is named `owner/name`, as in the export, in any case; a name without owner stands for the only
    repository of that name. BadRecord with file and line for what is not a JSON object, or no object of the layouts,
    unless `skip_bad`: then it is added to `bad`, for whoever counts it.
    """
    reader = _Reader(repositories)
    for source in open_inputs(list(names)):
        for number, line in source.numbered_lines():
            try:
                reader.read(parse(line))
            except BadRecord as error:
                placed = BadRecord(error.what, where=f"{source.name}:{number}", remedy=error.remedy)
                if not skip_bad:
                    raise placed from None
                if bad is not None:
                    bad.append(placed)
    return reader.found


class _Reader:
    def __init__(self, repositories: Sequence[str]):
        self.found: dict[str, Threads] = {name: {} for name in repositories}
        self._asked = Asked(repositories)

    def read(self, record: dict[str, Any]) -> None:
        if isinstance(record.get("type"), str) and isinstance(record.get("payload"), dict):
            self._event(record)
        else:
            self._object(record)

    def _threads(self, full_name: str) -> Threads | None:
        """What is kept of a repository; None when nobody asked for it."""
        name = self._asked.find(full_name, "the export")
        return self.found[name] if name else None

    def _event(self, event: dict[str, Any]) -> None:
        kind, payload = event["type"], event["payload"]
        if kind not in _EVENTS:
            return
        name = _repository_of(event)
        threads = self._threads(name)
        if threads is None:
            return
        time, action = _time(event.get("created_at")), str(payload.get("action"))
        about = _dict(payload, "pull_request") or _dict(payload, "issue")
        number = about.get("number", payload.get("number"))
        if type(number) is not int or not 0 < number < 10**9:
            return  # events of before 2015 have no more than the number of a row in a data base
        thread = threads.setdefault(number, Thread(number))
        _learn(thread, name, about, time, "pull_request" in payload)
        if kind in ("PullRequestEvent", "IssuesEvent"):
            thread.learn(time, state=_STATES.get(action), merged=True if action == "merged" else None)
            if action == "opened":
                thread.learn("", author=_login(event.get("actor")))
        elif said := _dict(payload, "review" if kind == "PullRequestReviewEvent" else "comment"):
            _note(thread, _EVENTS[kind], said, time, gone=action == "deleted")

    def _object(self, record: dict[str, Any]) -> None:
        said_at = ("url",) if "title" in record else ("pull_request_url", "issue_url")
        place = next((record[key] for key in said_at if isinstance(record.get(key), str)), "")
        match = _URL.search(place)
        if match is None:
            fields = ", ".join(sorted(record))[:200]
            raise BadRecord(
                f"neither an event nor an object of /pulls or /issues, with the fields {fields}",
                remedy="export GH Archive's events or the REST API's objects, one a line",
            )
        threads = self._threads(match[1])
        if threads is None:
            return
        thread = threads.setdefault(int(match[2]), Thread(int(match[2])))
        time = _time(record.get("updated_at") or record.get("submitted_at") or record.get("created_at"))
        if "title" in record:
            _learn(thread, match[1], record, time, "head" in record or "pull_request" in record)
        elif "diff_hunk" in record:
            _note(thread, "review_comment", record, time)
        elif "pull_request_url" in record:
            _note(thread, "review", record, time)
        else:
            _note(thread, "comment", record, time)


_EVENTS = {
    "PullRequestEvent": "",
    "IssuesEvent": "",
    "IssueCommentEvent": "comment",
    "PullRequestReviewEvent": "review",
    "PullRequestReviewCommentEvent": "review_comment",
}


def _learn(thread: Thread, repository: str, about: dict[str, Any], time: str, pull: bool) -> None:
    """What an object of a pull request or issue says. The issue of a pull request has a link to it."""
    thread.pull |= pull or "pull_request" in about
    time = _time(about.get("updated_at")) or time
    body = about.get("body")
    labels = [label.get("name") if isinstance(label, dict) else label for label in _list(about, "labels")]
    thread.learn(
        time,
        title=_string(about.get("title")),
        body=cut(body) if isinstance(body, str) else ("" if "body" in about else None),
        author=_login(about.get("user")),
        bot=_is_bot(about.get("user")) or None,
        state=_string(about.get("state")),
        labels=[label for label in labels if isinstance(label, str)] if "labels" in about else None,
    )
    thread.links.update(linked(body if isinstance(body, str) else "", repository))
    if "head" in about or "base" in about:
        merged = about.get("merged", bool(about["merged_at"]) if "merged_at" in about else None)
        thread.learn(
            time,
            merged=merged if isinstance(merged, bool) else None,
            merge_commit=_string(about.get("merge_commit_sha")),
            commits=about.get("commits") if isinstance(about.get("commits"), int) else None,
            **{
                f"{side}_{key}": _string(_dict(about, side).get(key))
                for side in ("base", "head")
                for key in ("ref", "sha")
            },
        )


def _note(thread: Thread, kind: str, said: dict[str, Any], time: str, gone: bool = False) -> None:
    number, body = said.get("id"), said.get("body")
    key = (kind, number if isinstance(number, int) else len(thread.notes))
    if key in thread.notes and thread.notes[key][0] > time:
        return
    thread.pull |= kind != "comment"
    state = said.get("state")
    note = Note(
        kind=kind,
        author=_login(said.get("user")) or "",
        bot=_is_bot(said.get("user")),
        body=cut(body) if isinstance(body, str) else "",
        time=_time(said.get("created_at") or said.get("submitted_at")) or time,
        path=_string(said.get("path")),
        hunk=_string(said.get("diff_hunk")),
        verdict=state.lower() if kind == "review" and isinstance(state, str) else None,
    )
    thread.notes[key] = (time, None if gone or not (note.body or note.verdict in _VERDICTS) else note)


def cut(text: str) -> str:
    """At most the table's lines and characters; line ends are line feeds."""
    limits = table()["limits"]
    lines = text.replace("\r\n", "\n").strip().split("\n")
    return "\n".join(lines[: limits["text_lines"]])[: limits["text_chars"]].rstrip()


def linked(text: str, repository: str) -> list[int]:
    """The numbers of the issues of this repository, `owner/name`, that a text says it closes."""
    found = [(place or url or repository, int(number)) for place, url, number in _links().findall(text)]
    return [number for place, number in found if place.lower() == repository.lower()]


@cache
def _links() -> re.Pattern[str]:
    words = "|".join(table()["links"]["keywords"])
    place = r"[\w.-]{1,100}/[\w.-]{1,100}"
    return re.compile(rf"\b(?:{words}):?\s+(?:({place})?#|https://github\.com/({place})/issues/)(\d{{1,9}})\b", re.I)


def _repository_of(event: dict[str, Any]) -> str:
    """`owner/name` of an event; before 2015 it is in two fields of another object."""
    name = _dict(event, "repo").get("name")
    if isinstance(name, str):
        return name
    before = _dict(event, "repository")
    return f"{before.get('owner')}/{before.get('name')}"


def _is_bot(user: Any) -> bool:
    return isinstance(user, dict) and user.get("type") == "Bot"


def _login(user: Any) -> str | None:
    return _string(user.get("login")) if isinstance(user, dict) else _string(user)


def _time(value: Any) -> str:
    """ISO 8601 in UTC, which sorts as text; GH Archive of before 2015 has blanks, slashes and an offset."""
    if not isinstance(value, str):
        return ""
    return value[:19].replace("/", "-").replace(" ", "T") + "Z" if value[4:5] == "/" else value


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _dict(record: dict[str, Any], name: str) -> dict[str, Any]:
    value = record.get(name)
    return value if isinstance(value, dict) else {}


def _list(record: dict[str, Any], name: str) -> list[Any]:
    value = record.get(name)
    return value if isinstance(value, list) else []
