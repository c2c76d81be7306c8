"""A quick end for the forks of a template.

When an interpreter ends it takes everything apart, object by object. In a fork each page that this writes to is copied
first, only to be thrown away: more than half of a short run's time, and nearly all for a fork that shares pandas with
its template. So what was there before the fork, and is still as it was, is left alone; everything of the program's own
ends as ever: threads, `atexit`, buffers, modules, `__del__`.

Two moments of `Py_FinalizeEx` are used, of which weak references tell; nothing of it can be seen from a program:

1. All that a program can have asked for at its end is done, and the interpreter drops `sys.__interactivehook__`,
   before it takes modules apart: what is to be spared goes out of `sys.modules`.
2. The program's modules are gone, and the interpreter, which clears `sys` itself, drops `sys.stdin`: the process ends,
   if its exit status is known to be 0. Else the interpreter goes on and ends with the status that it alone knows.
"""

import ctypes
import os
import sys
import weakref
from typing import Any

__all__ = ["hasten"]

# Of PyDictObject, after the object's head: the number of entries, and what changes with each change.
_STATE = 16
_STATE_BYTES = 16
_ENDED_BY_THE_INTERPRETER = frozenset({"__main__", "builtins", "sys"})
# Members of `sys` that `Py_FinalizeEx` sets to None, by version: if they stand at the end, in this order, none of them
# was there before, and so no exception was reported.
_DROPPED = {
    (3, 10): ("ps1", "ps2", "last_type", "last_value", "last_traceback"),
    (3, 11): ("ps1", "ps2", "last_type", "last_value", "last_traceback"),
    (3, 12): ("ps1", "ps2", "last_exc", "last_type", "last_value", "last_traceback"),
    (3, 13): ("ps1", "ps2", "last_exc", "last_type", "last_value", "last_traceback"),
}
_MOST_REFERENCES = 3  # the dictionary's, ours, and the call's that counts them


def hasten(modules: dict[str, Any]) -> None:
    """Have the interpreter spare *modules*, when it ends, unless they have changed by then."""
    hook = getattr(sys, "__interactivehook__", None)
    if hook is None or sys.getrefcount(hook) > _MOST_REFERENCES:  # somebody else holds it too: it would not be dropped
        return
    states = []
    for name, module in modules.items():
        if name not in _ENDED_BY_THE_INTERPRETER and type(module) is type(sys):
            _keep(module)
            address = id(vars(module)) + _STATE
            states.append((name, address, ctypes.string_at(address, _STATE_BYTES)))
    members = vars(sys)
    dropped = _DROPPED.get(sys.version_info[:2])
    size = len(members) + len(dropped or ())
    main = vars(sys.modules["__main__"])
    loader = main.get("__loader__")
    ended_well = False
    # All that is used then must not be looked up in a module that is gone.
    read, known, is_finalizing, leave = ctypes.string_at, sys.modules, sys.is_finalizing, os._exit

    def before_modules(_: object) -> None:
        nonlocal ended_well
        if not is_finalizing():  # a program has dropped the hook
            return
        for name, address, state in states:
            if read(address, _STATE_BYTES) == state:
                known.pop(name, None)
        # A program that has begun has a loader of its own. `__file__` is taken out again when its last line has run,
        # not when it was left by SystemExit.
        ended_well = (
            dropped is not None
            and len(members) == size
            and tuple(members)[-len(dropped) :] == dropped
            and "__file__" not in main
            and "__cached__" not in main
            and "__spec__" in main
            and main.get("__loader__") is not loader
        )

    def in_sys(_: object) -> None:
        if not ended_well:
            return
        try:
            for name in ("stdout", "stderr"):
                if (stream := members.get(name)) is not None:
                    stream.flush()
        except BaseException:  # the interpreter will meet it too, and tell
            return
        leave(0)

    _keep(weakref.ref(hook, before_modules))
    if sys.stdin is not None:
        _keep(weakref.ref(sys.stdin, in_sys))


def _keep(thing: object) -> None:
    """Never free it."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
