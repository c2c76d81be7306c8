"""Settings of users: who signs up and logs in, with which password or provider, and by whom mail is sent."""

from dataclasses import dataclass, field
from typing import Literal

from stockade.settings import setting

__all__ = ["MailConfig", "OidcConfig", "UsersConfig"]


@dataclass(frozen=True, kw_only=True)
class MailConfig:
    """The SMTP server that takes our mail. Without one none is sent; the operator hands links out."""

    host: str = setting("", env=("SMTP_HOST",), help="Name of the SMTP server; empty: no mail is sent.")
    port: int = setting(587, env=("SMTP_PORT",), at_least=1, at_most=65535, help="Its port.")
    user: str = setting("", env=("SMTP_USER",), help="Name to log in with; empty: without a log-in.")
    password: str = setting("", env=("SMTP_PASSWORD",), secret=True, help="Password to log in with.")
    sender: str = setting("", env=("SMTP_FROM",), help="Address that mail comes from; needed with `host`.")
    encryption: Literal["starttls", "tls", "none"] = setting(
        "starttls", help="`starttls`, `tls` from the beginning, or `none` (refused with a password beyond loopback)."
    )
    timeout_s: float = setting(10.0, at_least=0.1, help="Time that the server has for each step.")


@dataclass(frozen=True, kw_only=True)
class OidcConfig:
    """A provider of OpenID Connect by which users can log in."""

    issuer: str = setting("", help="URL of the provider (`https://…`); empty: none. Extra: `oidc`.")
    client_id: str = setting("", help="Our id at the provider.")
    client_secret: str = setting("", secret=True, help="Our secret there.")
    name: str = setting("Single sign-on", help="What the button says.")
    sign_up: bool = setting(True, help="Make an account for whoever the provider vouches for and who has none yet.")


@dataclass(frozen=True, kw_only=True)
class UsersConfig:
    """People who log in: to the portal, and over `/v1/auth`."""

    sign_up: Literal["auto", "open", "closed"] = setting(
        "auto",
        help="Who may register: `open` everybody who reaches the server, `closed` nobody (`stockade users create` "
        "makes accounts). `auto` is open where only this machine can reach the server.",
    )
    tier: Literal["free", "starter", "pro", "enterprise"] = setting(
        "pro", help="Tier of the accounts of people who register, or who come through a provider."
    )
    jwt_secret: str = setting(
        "",
        env=("JWT_SECRET",),
        secret=True,
        help="Signs the tokens of `/v1/auth` (at least 32 characters). Not set: the first start makes one and keeps it "
        "in the data directory. Servers that share accounts need the same.",
    )
    token_s: float = setting(86400.0, at_least=60, help="Life of a token of `/v1/auth`.")
    session_s: float = setting(30 * 86400.0, at_least=60, help="Life of a log-in in the browser.")
    idle_s: float = setting(7 * 86400.0, at_least=60, help="A log-in ends when it is not used for so long.")
    public_url: str = setting(
        "", help="Where browsers reach this server (`https://…`): for links in mail, and for cookies that need HTTPS."
    )
    mail: MailConfig = field(default_factory=MailConfig)
    oidc: OidcConfig = field(default_factory=OidcConfig)
