"""The native backend: sandboxes from the kernel's own namespaces, control groups and seccomp, made by the warden."""

from stockade.backends.base import BackendPlugin
from stockade.backends.native.backend import NativeBackend

__all__ = ["NativeBackend", "backend"]

backend = BackendPlugin(name="native", make=NativeBackend, has_warden=True)
