"""The environment that commands get: the user's own, without what could be a key."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASS|_PWD$|CREDENTIAL|AUTH|COOKIE|PRIVATE|SIGNING", re.IGNORECASE)
_SECRET_VALUE = re.compile(
    r"://[^/\s:@]*:[^/\s@]+@|-----BEGIN|\b(?:sk|pk|ghp|gho|ghs|github_pat|xox[abp]|AKIA)[-_A-Z0-9]"
)
"""A password in a URL, a key in PEM, and how the keys of well-known services begin."""

_RUNS_CODE = frozenset({"BASH_ENV", "ENV", "PROMPT_COMMAND"})
"""What a shell would run before the command."""


def without_secrets(environment: Mapping[str, str], secrets: Iterable[str] = ()) -> dict[str, str]:
    """All but the variables whose name or value looks like a secret, or holds one of the ``secrets``."""
    known = [secret for secret in secrets if secret]
    return {
        name: value
        for name, value in environment.items()
        if name not in _RUNS_CODE
        and not _SECRET_NAME.search(name)
        and not _SECRET_VALUE.search(value)
        and not any(secret in value for secret in known)
    }
