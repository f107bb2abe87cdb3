"""Fair sharing of tokens between tenants."""

from roost.engine.scheduling.waiting_queue import FairShares


def test_a_tenant_without_waiting_requests_may_be_charged() -> None:
    shares = FairShares()
    shares.charge("a", 5)
    shares.enter("b")
    shares.enter("a")
    assert shares.first(["a", "b"]) == "b"
