"""What transformers prints while ours is printed."""

from __future__ import annotations

import pytest
from transformers.utils import logging

from layerif.model.quiet import quiet_transformers


@pytest.mark.parametrize("asked", [logging.WARNING, logging.INFO])
def test_its_switches_are_left_as_they_were(asked):
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity(asked)
        logging.enable_progress_bar()
        with quiet_transformers(warnings=False):
            assert not logging.is_progress_bar_enabled()
            expected = logging.ERROR if asked == logging.WARNING else asked
            assert logging.get_verbosity() == expected
        assert logging.get_verbosity() == asked
        assert logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity(before[0])
        (logging.enable_progress_bar if before[1] else logging.disable_progress_bar)()
