"""Two limits of scope SERVICE in one list were one bucket, and a route's and the service's were two."""

from __future__ import annotations

import pytest

from resilmesh import Mesh
from resilmesh.engine.call import SEND, Call

pytestmark = pytest.mark.mesh_leaks("off")  # calls are only begun


def sent(mesh, *routes):
    plans = [mesh.table.named("s", route)[1] for route in routes]
    return [Call(plan).start(1000.0) is SEND for plan in plans]


def test_each_limit_of_a_list_is_a_bucket():
    mesh = Mesh.from_text("""
apiVersion: resilmesh/v1
services:
- name: s
  routes:
  - name: a
    rateLimit: [{requests: 4, per: 1s, scope: SERVICE}, {requests: 2, per: 60s, scope: SERVICE}]
""")
    assert sent(mesh, "a", "a", "a") == [True, True, False]


def test_a_route_and_its_service_share_the_bucket():
    mesh = Mesh.from_text("""
apiVersion: resilmesh/v1
services:
- name: s
  rateLimit: {requests: 2, per: 60s}
  routes:
  - {name: a, rateLimit: {requests: 2, per: 60s, scope: SERVICE}}
  - {name: b}
""")
    assert sent(mesh, "a", "b", None, "a") == [True, True, False, False]
