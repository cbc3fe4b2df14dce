"""Published tables of images as grids of runs, each declared in ``published/NAME.yaml`` and put beside its print.

:mod:`~vision.tables.table` reads the declaration, :mod:`~vision.tables.plan` makes runs of it,
:mod:`~vision.tables.jobs` processes of these, :mod:`~vision.tables.rows` numbers of what they leave,
:mod:`~vision.tables.report` and :mod:`~vision.tables.page` the report, :mod:`~vision.tables.commands` a command.
"""
