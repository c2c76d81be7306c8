"""What clients of `/v1/auth` send and get: for the description, and how a user is shown."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from stockade.dialects.code_sandbox.translate import timestamp
from stockade.model.users import User

__all__ = ["LoginBody", "RegisterBody", "SignedIn", "Validated", "from_user"]


class RegisterBody(BaseModel):
    """Who wants an account. Names match in any letter case; further members are ignored."""

    name: str
    email: str
    organization: str | None = None
    password: str = Field(description="12 bytes of UTF-8 at least.")


class LoginBody(BaseModel):
    """Who logs in."""

    email: str
    password: str


class UserAnswer(BaseModel):
    """A user."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid")

    id: str = Field(description="32 hexadecimal digits.")
    name: str
    email: str
    organization: str = Field(default="", description="Absent where there is none.")
    created_at: datetime
    updated_at: datetime


class SignedIn(BaseModel):
    """A user, and a token that is theirs for a day, unless the server says otherwise."""

    user: UserAnswer
    token: str = Field(description="JSON Web Token (HS256) with the claims `user_id`, `email`, `exp`.")


class Validated(BaseModel):
    """Whose token that is."""

    valid: Literal[True]
    user: UserAnswer


def from_user(user: User) -> dict[str, Any]:
    """A user as the contract shows one; what they log in with never leaves the server."""
    organization = {"organization": user.organization} if user.organization else {}
    return {
        "id": user.id,
        "name": user.name,
        "email": user.email,
        **organization,
        "createdAt": timestamp(user.created_at),
        "updatedAt": timestamp(user.updated_at),
    }
