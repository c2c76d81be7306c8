"""What people type into a form: checked, and refused with the name of the field that is wrong."""

import unicodedata

from stockade.accounts.passwords import LONGEST_BYTES, SHORTEST_BYTES
from stockade.errors import Denied, Invalid

__all__ = [
    "LONGEST_EMAIL",
    "LONGEST_NAME",
    "SignUpClosed",
    "UserLocked",
    "WrongCredentials",
    "WrongInput",
    "email",
    "email_key",
    "legible",
    "name",
    "organization",
    "password",
    "presented_password",
]

LONGEST_NAME = 255
LONGEST_EMAIL = 254
_UNPRINTABLE = ("Cc", "Cf", "Cs", "Zl", "Zp", "Zs")
_NO_TEXT = ("Cc", "Cs", "Zl", "Zp")
_TURNS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Have what follows shown in the other direction: in a list, a name would rearrange what stands beside it."""
_SPECIAL = ',;:<>()[]"\\'


class WrongInput(Invalid):
    """One of the fields is wrong; `field` says which."""

    code = "input.wrong"

    def __init__(self, field: str, message: str) -> None:
        self.field = field
        super().__init__(message)


class WrongCredentials(Denied):
    """Nobody has that address and that password: nobody learns which of them is wrong."""

    code = "auth.invalid_credentials"

    def __init__(self) -> None:
        super().__init__("invalid credentials")


class UserLocked(Denied):
    """The password is right, and an admin lets its owner in no more."""

    code = "auth.locked"

    def __init__(self) -> None:
        super().__init__("this user is locked; ask the operator of this server")


class SignUpClosed(Denied):
    """Strangers cannot make themselves an account here."""

    code = "auth.sign_up_closed"

    def __init__(self) -> None:
        super().__init__("this server takes no registrations; ask its operator for an account")


def name(given: str) -> str:
    """A person's name, without space around it. Raises WrongInput."""
    found = given.strip()
    if not found:
        raise WrongInput("name", "name is required")
    return _text("name", found)


def organization(given: str) -> str:
    """Whom they are with; may be empty. Raises WrongInput."""
    return _text("organization", given.strip())


def email(given: str) -> str:
    """An e-mail address, without space around it. Raises WrongInput."""
    found = given.strip()
    if not found:
        raise WrongInput("email", "email is required")
    # No more is asked of its form: the address is right when mail arrives there. But what would mean something in a
    # mail's header (a line's end, a second address) must not be kept.
    is_clean = all(unicodedata.category(one) not in _UNPRINTABLE and one not in _SPECIAL for one in found)
    if found.count("@") != 1 or "." not in found or not is_clean or len(found) > LONGEST_EMAIL:
        raise WrongInput("email", "invalid email format")
    return found


def email_key(given: str) -> str:
    """By what addresses are compared: those that differ in letter case only are the same."""
    return given.strip().casefold()


def password(given: str, *, field: str = "password") -> str:
    """A new password. Raises WrongInput."""
    if len(given[:LONGEST_BYTES].encode(errors="surrogatepass")) < SHORTEST_BYTES:
        raise WrongInput(field, f"password must be at least {SHORTEST_BYTES} characters long")
    return presented_password(given, field=field)


def presented_password(given: str, *, field: str = "password") -> str:
    """A password that somebody logs in with: nothing is asked of it but that it is not there to keep us busy.

    Raises:
        WrongInput: it is.
    """
    if len(given) > LONGEST_BYTES or len(given.encode(errors="surrogatepass")) > LONGEST_BYTES:
        raise WrongInput(field, f"password must be at most {LONGEST_BYTES} bytes long")
    return given


def legible(given: str) -> str:
    """*given* without what no name may hold: for names that somebody else vouches for, whom nobody can ask again."""
    return "".join(one for one in given if _is_text(one)).strip()[:LONGEST_NAME]


def _is_text(one: str) -> bool:
    return unicodedata.category(one) not in _NO_TEXT and one not in _TURNS


def _text(field: str, given: str) -> str:
    if len(given) > LONGEST_NAME:
        raise WrongInput(field, f"{field} must be at most {LONGEST_NAME} characters long")
    if not all(map(_is_text, given)):
        raise WrongInput(field, f"{field} holds characters that are none")
    return given
