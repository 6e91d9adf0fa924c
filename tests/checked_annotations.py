"""The check of annotations that every test runs under: see `conftest`."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

# An integer is a float to type checkers (PEP 484), so here, too.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
