"""The RecBole backend. Importing it repairs RecBole for today's stack and makes ``denoiser:`` count.

A script that calls RecBole's own ``run_recbole`` or ``get_trainer`` honours the flag after one added line at its top::

    import recdenoise.recbole_adapter
"""

from recdenoise.recbole_adapter import compat

compat.apply()

from recdenoise.recbole_adapter.quick_start import RecBoleResult, run_recbole  # noqa: E402
from recdenoise.recbole_adapter.trainer import DenoisingTrainer, install_flag  # noqa: E402

install_flag()

__all__ = ["DenoisingTrainer", "RecBoleResult", "run_recbole"]
