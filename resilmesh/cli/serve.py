"""``resilmesh serve app:app --policy FILE``: an ASGI application with mutual TLS, authorization and limits by the policy."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from resilmesh.errors import PolicyError


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's words."""
    parser.add_argument("app", metavar="MODULE:APP", help="the application, such as shop.web:app")
    parser.add_argument("--policy", metavar="FILE", required=True, help="a policy, YAML or JSON; read again when it changes")
    parser.add_argument(
        "--identity", metavar="DIR", help="a directory with this workload's certificate, key and bundle (default: what the policy says)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="the port to listen on (%(default)s; 0: any that is free)")
    parser.add_argument("--factory", action="store_true", help="APP is called, and gives the application")
    parser.add_argument("--app-dir", metavar="DIR", default=".", help="where MODULE is looked for (%(default)s)")
    parser.add_argument(
        "--log-level", default="info", choices=["critical", "error", "warning", "info", "debug"], help="of uvicorn (%(default)s)",
    )


def run(options: argparse.Namespace) -> int:
    """Serve until interrupted. 1: the policy, the identity or the application cannot be used."""
    try:
        import uvicorn
        from uvicorn.importer import ImportFromStringError, import_from_string
    except ImportError:
        print("resilmesh serve needs uvicorn: pip install 'resilmesh[serve]'", file=sys.stderr)
        return 1
    from resilmesh.identity.spiffe import IdentityError
    from resilmesh.inbound.serve import configuration
    from resilmesh.mesh import configure

    try:
        # The process's own mesh: what the application calls is under the same policy.
        mesh = configure(options.policy, identity=options.identity)
        sys.path.insert(0, options.app_dir)
        app: Any = import_from_string(options.app)
        config = configuration(
            app() if options.factory else app, mesh, host=options.host, port=options.port, log_level=options.log_level,
        )
        config.load()
    except (PolicyError, IdentityError, ImportFromStringError) as error:
        print(error, file=sys.stderr)
        return 1
    with mesh:
        uvicorn.Server(config).run()
    return 0
