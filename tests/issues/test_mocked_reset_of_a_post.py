"""respx takes the place of httpcore's pool, below our backend: a broken connection that it plays is no proof that nothing was sent."""

import httpx
import pytest
import respx

import resilmesh
from resilmesh.http import Transport

POLICY = """
apiVersion: resilmesh/v1
services:
- name: orders
  hosts: [orders.test]
  retries: {maxRetries: 2, retryOn: [5xx], backoff: {base: 1ms}}
"""


@pytest.mark.parametrize(("method", "error", "sent"), [
    ("POST", httpx.ReadError, 1), ("GET", httpx.ReadError, 3), ("POST", httpx.ConnectError, 3),
])
def test_a_post_that_broke_is_sent_once(method: str, error: type[Exception], sent: int) -> None:
    with respx.mock as mocked, httpx.Client(transport=Transport(resilmesh.Mesh.from_text(POLICY))) as client:
        route = mocked.route(host="orders.test").mock(side_effect=error)
        with pytest.raises(error):
            client.request(method, "http://orders.test/v1")
        assert route.call_count == sent
