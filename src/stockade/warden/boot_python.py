"""The `sitecustomize` of a template's interpreter (`template`): the last of the start-up, before the program is opened.

Nothing of it may be seen by a tenant: what it changed it puts back, then the image's own `sitecustomize` is imported,
if there is one, as it would have been.
"""

import os
import sys


def _begin() -> bool:
    """Returns in tenants' processes only: whether the image has a `sitecustomize`."""
    here = os.path.dirname(__file__)
    sys.path.remove(here)
    try:
        with open(f"{here}/path", encoding="utf-8", errors="surrogateescape") as own:
            os.environ["PYTHONPATH"] = own.read()
    except FileNotFoundError:
        del os.environ["PYTHONPATH"]
    del sys.modules[__name__]
    try:
        __import__(__name__)
    except ImportError as error:
        if error.name != __name__:
            raise
    with open(f"{here}/preload") as names:
        for name in names.read().split():
            __import__(name)
    kept = dict(sys.modules)
    contents = {name: dict(vars(module)) for name, module in kept.items() if isinstance(module, type(sys))}
    paths = {path: finder for path, finder in sys.path_importer_cache.items() if path != here}
    sys.path.insert(0, here)
    compiling = os.fork()  # what that takes of memory shall not be in the template, whose forks would have it too
    if compiling == 0:
        from stockade.warden import template

        os._exit(0)
    os.waitpid(compiling, 0)
    from stockade.warden import template

    del sys.path[0]
    sys.path_importer_cache.clear()
    sys.path_importer_cache.update(paths)
    own_modules = {name: sys.modules.pop(name) for name in set(sys.modules) - set(kept)}
    for name, old in contents.items():  # `importlib` renames its own parts, a package gets its modules as attributes
        new = vars(kept[name])
        if new.keys() != old.keys() or any(new[key] is not value for key, value in old.items()):
            new.clear()
            new.update(old)
    del contents, paths
    template.main(own_modules)
    return __name__ in kept


try:
    found = _begin()
except BaseException:
    # `site` would report it and go on, to a program that is not there.
    sys.excepthook(*sys.exc_info())
    os._exit(1)
if not found:
    raise ImportError("the image has none", name=__name__)
