"""What libraries log while they are imported does not reach a user's terminal."""

import logging
import subprocess
import sys
import warnings

import pytest

from deltarank.system import import_silently, silence_logging


def test_only_errors_are_logged_inside_and_everything_afterwards(caplog: pytest.LogCaptureFixture) -> None:
    with silence_logging():
        logging.getLogger("some.library").warning("kernels are missing")
        warnings.warn("this will change", FutureWarning, stacklevel=1)
        logging.getLogger("some.library").error("this is broken")
    logging.getLogger("some.library").warning("heard")

    assert [record.getMessage() for record in caplog.records] == ["this is broken", "heard"]


def test_a_library_that_is_missing_raises_import_error() -> None:
    with pytest.raises(ImportError):
        import_silently("no_such_library")


@pytest.mark.slow
def test_calibration_needs_no_bitsandbytes() -> None:
    """It is an extra, and PEFT's module for it cannot be imported without."""
    code = "import sys; sys.modules['bitsandbytes'] = None; import deltarank.jobs.calibrate"
    subprocess.run([sys.executable, "-c", code], check=True)
