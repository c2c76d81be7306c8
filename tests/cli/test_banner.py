"""What `stockade serve` tells a new user."""

from stockade.app.server import Listener
from stockade.cli.serve import banner
from stockade.config import load


def shown(**options: object) -> str:
    return banner(
        load(environ={}, options=options), (Listener(dialect="", host="127.0.0.1", port=8080, sockets=()),), ""
    )


def test_a_new_user_is_told_where_the_portal_is() -> None:
    assert "In a browser         http://127.0.0.1:8080/" in shown().splitlines()
    assert "In a browser" not in shown(**{"portal.enabled": False})
