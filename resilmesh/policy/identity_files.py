"""What the files of an identity are called: by the library that reads them, and by what is exported for Envoy."""

from __future__ import annotations

#: The names that are looked for in a directory: certificate, key and bundle.
FILE_NAMES = (
    ("tls.crt", "tls.key", "ca.crt"),  # a Kubernetes secret, cert-manager, `resilmesh ca issue`
    ("svid.pem", "svid_key.pem", "svid_bundle.pem"),  # SPIRE's helper
    ("svid.pem", "svid.key", "bundle.pem"),
)
#: Where in it the bundles of federated trust domains are, as `partner.example.pem`.
FEDERATED = "federated"
