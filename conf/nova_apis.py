# written by nova.py; edit conf/nova_apis.py
"""nova's two APIs in one process, as nova-api always was: which one is asked for, the port tells."""

from collections.abc import Iterable
from typing import Any

from nova.wsgi import metadata, osapi_compute

PORTS = {"8774": osapi_compute.application, "8775": metadata.application}


def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """WSGI, as PEP 3333 has it."""
    return PORTS[environ["SERVER_PORT"]](environ, start_response)  # type: ignore[no-any-return]
