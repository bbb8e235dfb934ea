"""Names of people in a conversation, replaced: user_0, user_1, ... in the order in which they appear in one record.

A login is replaced wherever it is an author, in mentions, and in links to its page. A mention of somebody who does not
take part is replaced too, but not inside code, where `@name` is a decorator or the scope of a package. Names that are
ordinary text are not looked for; addresses and secrets are another stage's work.
"""

import re
from dataclasses import dataclass, field

_LOGIN = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,38})(?:\[bot\])?"
_CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]*`)", re.DOTALL)
_MENTION = re.compile(rf"(?<![\w@/.-])@({_LOGIN})(?![\w/-])")
_PAGE = re.compile(rf"\bgithub\.com/({_LOGIN})(?=[/\s).,]|$)")
_FROM = re.compile(rf"^(Merge pull request #\d+ from )({_LOGIN})(?=[/:])", re.MULTILINE)
_PERSON = re.compile(r"^([\w-]+-by): .*$", re.MULTILINE | re.IGNORECASE)


@dataclass(slots=True)
class Names:
    """One record's. `known` are the logins, in lower case, of those who take part."""

    known: set[str]
    _given: dict[str, str] = field(default_factory=dict)

    def of(self, login: str) -> str:
        """What a login is called in this record; nobody is ''."""
        return self._given.setdefault(login.lower(), f"user_{len(self._given)}") if login else ""

    def text(self, text: str) -> str:
        """A text without logins."""
        parts = _CODE.split(text)
        parts[::2] = [_MENTION.sub(lambda m: "@" + self.of(m[1]), part) for part in parts[::2]]
        parts[1::2] = [_MENTION.sub(self._taking_part, part) for part in parts[1::2]]
        return _PAGE.sub(self._taking_part, "".join(parts))

    def _taking_part(self, match: re.Match[str]) -> str:
        login = match[match.lastindex or 0]
        return match[0].removesuffix(login) + self.of(login) if login.lower() in self.known else match[0]

    def message(self, message: str) -> str:
        """A commit's message: also without the trailers that name people, and whose branch was merged."""
        message = _FROM.sub(lambda m: m[1] + self.of(m[2]), message)
        return self.text(_PERSON.sub("", message)).rstrip()
