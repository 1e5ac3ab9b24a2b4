"""Lets an interpreter that was started ahead wait for its program (`zygote` in languages.toml).

`site` imports this at the end of the interpreter's start, before the program's path is looked at: what follows is what
`python3 PROGRAM` does by itself. Nothing of this module stays, and for everybody but a zygote it is not there: the folder
is in PYTHONPATH only as long as the interpreter waits.
"""

import os
import posix
import sys


def _wait():
    folder = os.path.dirname(__file__)
    for name in "QUORUN_ZYGOTE", "PYTHONPATH":
        del os.environ[name]
        posix.environ.pop(name.encode(), None)
    sys.path.remove(folder)
    sys.path_importer_cache.pop(folder, None)
    # As the import of a module that is not there would have done. An image's own one this hook must not stand in for.
    if sys.modules["_frozen_importlib_external"].PathFinder.find_spec("usercustomize"):
        os._exit(1)
    os.write(4, b"!")
    os.close(4)
    if os.read(3, 1) != b"!":
        os._exit(1)
    os.close(3)


if "QUORUN_ZYGOTE" in os.environ:
    _wait()
# Takes the module away again; `site` takes it for one that is not there.
raise ImportError("no module of that name", name="usercustomize")
