"""Settings of the portal: the web application that the merged server serves to people."""

from dataclasses import dataclass

from stockade.settings import setting

__all__ = ["PortalConfig"]


@dataclass(frozen=True, kw_only=True)
class PortalConfig:
    """The web application, and the API below `/api` that only it uses."""

    enabled: bool = setting(True, help="Serve the portal on the merged server.")
    streams_per_user: int = setting(
        64, at_least=1, help="Terminals and live outputs of one user that may be open at once."
    )
    requests_per_s: int = setting(
        50,
        at_least=1,
        help="Requests of one user (of one address, before the log-in) per second; four times as many at once.",
    )
    upload_bytes: int = setting(
        1 << 30, at_least=1024, help="Largest file that is uploaded at once; a sandbox's disk may have less room."
    )
