"""Routes whose handlers need nothing of the framework but to be found."""

from fastapi.routing import APIRoute

__all__ = ["DirectRoute"]


class DirectRoute(APIRoute):
    """A route that the application answers without the framework's layers, which cost more than such a handler does.

    Its handler takes the `Request` alone, reads the body itself, and makes a `Response` of every error of its own. To
    the framework it is a route like any other: documented, and answered with 405 for another method. Its path has no
    parameters.
    """
