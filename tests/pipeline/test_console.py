"""What the console lets through."""

from __future__ import annotations

import logging

from pipeline.console import open_console


def test_a_secret_in_an_address_reaches_neither_the_terminal_nor_the_log(tmp_path, capfd):
    """As where a store leads on to a signed address, and its library speaks of that."""
    signed = "https://host/x?a=b&X-Amz-Signature=hunter2"
    with open_console(tmp_path / "run.log") as console:
        logging.getLogger("components.some").warning("cannot read %s", signed)
        logging.getLogger("somelibrary").debug("GET %s", signed)
        try:
            raise OSError(f"403: {signed}")
        except OSError:
            logging.getLogger("components.some").exception("failed")
        console.print(f"see http://me:hunter2@host/x\n{signed}")
    shown, log = "".join(capfd.readouterr()), (tmp_path / "run.log").read_text()
    assert "hunter2" not in shown + log
    for text in (
        "cannot read https://host/x?a=b&X-Amz-Signature=***",
        "OSError: 403: https://host/x",
    ):
        assert text in shown
        assert text in log
    assert "GET https://host/x?a=b&X-Amz-Signature=***" in log
    assert "see http://***@host/x" in shown
