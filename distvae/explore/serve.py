"""Serve the page on this machine."""

from __future__ import annotations

import importlib.util
import logging

from distvae.explore.space import Space
from distvae.system.errors import UserError

# Only this machine reaches the page.
HOST = "127.0.0.1"


def check_installed() -> None:
    """Check that what shows the page is installed.

    Raises:
        UserError: it is not.
    """
    if importlib.util.find_spec("dash") is None:
        raise UserError("distvae explore needs dash: pip install 'distvae[explore]'")


def serve(spaces: list[Space], port: int) -> None:
    """Serve the page of one model, or of two side by side, until Ctrl-C.

    Args:
        port: 0: any free one.

    Raises:
        UserError: the port is taken.
    """
    from werkzeug.serving import make_server

    from distvae.explore.app import app

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # or it prints each request
    if port > 65535:
        raise UserError(f"--port {port}: should be at most 65535")
    try:
        server = make_server(HOST, port, app(spaces).server, threaded=True)
    except SystemExit:  # werkzeug prints why, and exits
        raise UserError(f"--port {port}: is in use or not allowed; name another") from None
    print(f"http://{HOST}:{server.server_port} (Ctrl-C to stop)", flush=True)
    server.serve_forever()
