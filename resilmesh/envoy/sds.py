"""Certificates that a real Envoy reads anew: its secret discovery service (SDS), from files.

A bootstrap that names a certificate's files reads them once. Here the same files are named by secrets, which Envoy loads again
whenever something is renamed into their directory: as Kubernetes, cert-manager and ``resilmesh ca issue --renew`` swap them.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from resilmesh.envoy.match import TYPE

Json = dict[str, Any]

_TLS = TYPE + "envoy.extensions.transport_sockets.tls.v3."


def rotating(bootstrap: Json, folder: str | os.PathLike[str]) -> Json:
    """A copy of ``bootstrap`` whose certificates and bundles follow their files. The secrets are written to ``folder``, which must stay.

    A pair that does not fit is refused by Envoy, which goes on with the one that it has. Bundles of federated trust domains, which
    its SPIFFE validator reads, are read once.
    """
    made = copy.deepcopy(bootstrap)
    for number, common in enumerate(_contexts(made)):
        certificates = common.pop("tls_certificates", None)
        if certificates is not None:
            (certificate,) = certificates
            name = f"certificate-{number}"
            watched = _watched(certificate["certificate_chain"]["filename"])
            common["tls_certificate_sds_secret_configs"] = [_secret(folder, name, {"tls_certificate": {**certificate, **watched}})]
        validation = common.get("validation_context", {})
        if "trusted_ca" in validation:
            trusted = validation.pop("trusted_ca")
            secret = {"validation_context": {"trusted_ca": trusted, **_watched(trusted["filename"])}}
            common["combined_validation_context"] = {
                "default_validation_context": common.pop("validation_context"),
                "validation_context_sds_secret_config": _secret(folder, f"bundle-{number}", secret),
            }
    return made


def _contexts(part: Any) -> Iterator[Json]:
    """Every ``common_tls_context`` of a bootstrap."""
    if isinstance(part, dict):
        for name, value in list(part.items()):
            if name == "common_tls_context":
                yield value
            else:
                yield from _contexts(value)
    elif isinstance(part, list):
        for each in part:
            yield from _contexts(each)


def _watched(file: str) -> Json:
    return {"watched_directory": {"path": os.path.dirname(os.path.abspath(file))}}


def _secret(folder: str | os.PathLike[str], name: str, content: Json) -> Json:
    path = Path(folder, f"{name}.json").absolute()
    path.write_text(json.dumps({"resources": [{"@type": _TLS + "Secret", "name": name, **content}]}), encoding="utf-8")
    return {"name": name, "sds_config": {"path_config_source": {"path": str(path)}, "resource_api_version": "V3"}}
