"""Wires the parts together: the one place that names concrete backends and dialects.

`engine` needs neither HTTP nor FastAPI (the command line's embedded runs use it alone); `http` makes the ASGI
application; `server` runs it.
"""
