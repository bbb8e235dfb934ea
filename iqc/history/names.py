"""Names of people in a conversation, replaced: user_0, user_1, ... in the order in which they appear in one record.

A login is replaced wherever it is an author, in mentions, and in links to its page. A mention of somebody who does not
take part is replaced too, but not inside code, where `@name` is a decorator or the scope of a package. Addresses of
mail become one placeholder, also not inside code. Names that are ordinary text are not looked for.
"""

import re
from dataclasses import dataclass, field

_LOGIN = r"[A-Za-z0-9](?:-?[A-Za-z0-9]){0,38}(?:\[bot\])?"  # what GitHub gives: no underscore, no hyphen at an end
_CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]*`)", re.DOTALL)
_MENTION = re.compile(rf"(?<![A-Za-z0-9@/.-])@({_LOGIN})(?![A-Za-z0-9/])")
_PAGE = re.compile(rf"\bgithub\.com/({_LOGIN})(?=[/\s).,]|$)")
_FROM = re.compile(rf"^(Merge pull request #\d+ from )({_LOGIN})(?=[/:])", re.MULTILINE)
_PERSON = re.compile(r"^[\w-]{1,40}-by: .*$\n?", re.MULTILINE | re.IGNORECASE)
_MAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}")
_PLACEHOLDER = "user@example.org"


def impersonal(message: str) -> str:
    """A commit's message without the trailers that name people, and without addresses of mail."""
    return _MAIL.sub(_PLACEHOLDER, _PERSON.sub("", message)).strip()


@dataclass(slots=True)
class Names:
    """One record's. `known` are the logins, in lower case, of those who take part."""

    known: set[str]
    _given: dict[str, str] = field(default_factory=dict)

    def of(self, login: str) -> str:
        """What a login is called in this record; nobody is ''."""
        return self._given.setdefault(login.lower(), f"user_{len(self._given)}") if login else ""

    def text(self, text: str) -> str:
        """A text without logins and addresses."""
        parts = _CODE.split(text)
        parts[::2] = [_MENTION.sub(self._mentioned, _MAIL.sub(_PLACEHOLDER, part)) for part in parts[::2]]
        parts[1::2] = [_MENTION.sub(self._taking_part, part) for part in parts[1::2]]
        return _PAGE.sub(self._taking_part, "".join(parts))

    def code(self, text: str) -> str:
        """Code without mentions of those who take part."""
        return _MENTION.sub(self._taking_part, text)

    def words(self, text: str) -> str:
        """A label or the name of a branch, in which a login may be a part: `bob-patch-1`."""
        for login in sorted(self.known, key=lambda login: (-len(login), login)):
            text = re.sub(
                rf"(?<![A-Za-z0-9]){re.escape(login)}(?![A-Za-z0-9])", self.of(login), text, flags=re.IGNORECASE
            )
        return text

    def message(self, message: str) -> str:
        """A commit's message: also without whose branch was merged, and without trailers that name people."""
        return self.text(_FROM.sub(lambda m: m[1] + self.of(m[2]), impersonal(message)))

    def _mentioned(self, match: re.Match[str]) -> str:
        return "@" + self.of(match[1])

    def _taking_part(self, match: re.Match[str]) -> str:
        login = match[match.lastindex or 0]
        return match[0].removesuffix(login) + self.of(login) if login.lower() in self.known else match[0]
