"""Mail to users: written here, handed to an SMTP server in the background.

With the standard library's `smtplib` in a thread: a few short mails a day need no other.
"""

import asyncio
import smtplib
import ssl
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import make_msgid

import structlog

from stockade.config_users import MailConfig
from stockade.errors import Invalid

__all__ = ["Letter", "Mailer"]

log = structlog.get_logger()

MOST_WAITING = 200
ATTEMPTS = 3
RETRY_S = 2.0
STEPS = 8
"""Answers of the server that one mail takes, at most."""
CLOSE_S = 5.0
_FINAL = (smtplib.SMTPAuthenticationError, smtplib.SMTPNotSupportedError)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, kw_only=True)
class Letter:
    """A mail in plain text."""

    to: str
    subject: str
    text: str


class Mailer:
    """Sends letters one after the other; whoever asks for one waits for nothing, and learns nothing by the time."""

    def __init__(self, config: MailConfig) -> None:
        """
        Raises:
            Invalid: there is no sender, or a password would go over the network in the clear.
        """
        if config.host and not config.sender:
            raise Invalid("users.mail.sender (SMTP_FROM): say from which address mail comes")
        if config.password and config.encryption == "none" and config.host not in _LOOPBACK:
            raise Invalid("users.mail.encryption: without it the password would be readable on its way to the server")
        self._config = config
        self._waiting: asyncio.Queue[Letter] = asyncio.Queue(MOST_WAITING)
        self._sending: asyncio.Task[None] | None = None

    @property
    def is_there(self) -> bool:
        """Whether there is a server that takes mail."""
        return bool(self._config.host)

    def post(self, letter: Letter) -> None:
        """Send a letter soon; without a server, or when too many wait, it is lost."""
        if not self.is_there:
            return
        try:
            self._waiting.put_nowait(letter)
        except asyncio.QueueFull:
            log.warning("mail.lost", reason="too many letters are waiting")
            return
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send_all())

    async def close(self) -> None:
        """Let the letters that wait be sent, for a moment."""
        if self._sending is not None:
            await asyncio.wait([self._sending], timeout=CLOSE_S)
            self._sending.cancel()

    async def _send_all(self) -> None:
        while not self._waiting.empty():
            await self._try(self._waiting.get_nowait())

    async def _try(self, letter: Letter) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                async with asyncio.timeout(STEPS * self._config.timeout_s):
                    await asyncio.to_thread(self._send, letter)
                return
            except Exception as error:  # also what the library makes of an address that somebody made up
                # Neither whom it is for nor what is in it belongs into the log; the error may quote both.
                reason = type(error).__name__
                is_final = not isinstance(error, OSError) or isinstance(error, _FINAL)  # the library's own are OSErrors
                if is_final or attempt == ATTEMPTS:
                    log.warning("mail.failed", reason=reason, attempts=attempt)
                    return
            await asyncio.sleep(RETRY_S * attempt)

    def _send(self, letter: Letter) -> None:
        """Hand a letter over; blocks. Raises OSError, SMTPException."""
        config = self._config
        message = EmailMessage()
        message["From"] = config.sender
        message["To"] = letter.to
        message["Subject"] = letter.subject
        message["Message-ID"] = make_msgid(domain=config.sender.rpartition("@")[2] or None)
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(letter.text)
        context = ssl.create_default_context()
        if config.encryption == "tls":
            server: smtplib.SMTP = smtplib.SMTP_SSL(config.host, config.port, timeout=config.timeout_s, context=context)
        else:
            server = smtplib.SMTP(config.host, config.port, timeout=config.timeout_s)
        with server:
            if config.encryption == "starttls":
                server.starttls(context=context)
            if config.user:
                server.login(config.user, config.password)
            server.send_message(message)
