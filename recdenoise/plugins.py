"""Files and modules of one's own that register denoisers, imported by name."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

from recdenoise.errors import UserError


def load_plugins(plugins: tuple[str, ...]) -> None:
    """Import files or modules that register denoisers of one's own."""
    for plugin in plugins:
        try:
            if plugin.endswith(".py"):
                load_file(Path(plugin))
            else:
                importlib.import_module(plugin)
        except UserError as error:
            raise UserError(f"Plugin {plugin}: {error}") from error
        except SyntaxError as error:
            where = f"{error.filename}, line {error.lineno}"
            raise UserError(f"Plugin {plugin} is not valid Python ({where}): {error.msg}.") from error
        except ModuleNotFoundError as error:
            raise UserError(f"Plugin {plugin} cannot be imported: {error}.") from error
        except Exception as error:
            raise UserError(f"Plugin {plugin} failed: {type(error).__name__}: {error}.") from error


def load_file(path: Path) -> None:
    """Import a file under a name of its own, so that a plugin called json.py shadows nothing."""
    if not path.is_file():
        raise UserError("there is no such file.")
    name = f"recdenoise_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
