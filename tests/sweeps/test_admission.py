"""Who is let in is known at once, from the cluster itself."""

import pytest
import ray

from segsweep.errors import ResourceError
from segsweep.sweeps.admission import asks_for_token, demand_admission
from segsweep.sweeps.token import MODE, TOKEN, find_token


@pytest.fixture
def address(cluster: None, monkeypatch: pytest.MonkeyPatch) -> str:  # noqa: ARG001
    """Of the tests' own Ray, which asks for this user's token."""
    monkeypatch.delenv(TOKEN, raising=False)
    return ray.get_runtime_context().gcs_address


def test_the_token_lets_in(address: str) -> None:
    assert asks_for_token(address)
    demand_admission(address, token=find_token())


def test_who_shows_none_is_told_where_it_belongs(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ResourceError,
        match=rf"RAY_ADDRESS={address}: the cluster asks for a token, and there is none in .*auth_token; copy",
    ):
        demand_admission(address, token="")
    monkeypatch.setenv(MODE, "disabled")
    with pytest.raises(ResourceError, match="asks for a token, but RAY_AUTH_MODE=disabled here; unset it"):
        demand_admission(address, token="")


def test_who_shows_another_is_told_from_where_it_came(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ResourceError, match=r"the cluster does not take the token in .*auth_token; copy"):
        demand_admission(address, token="another")
    monkeypatch.setenv(TOKEN, "another")
    with pytest.raises(ResourceError, match="the cluster does not take the token in RAY_AUTH_TOKEN; copy"):
        demand_admission(address, token="another")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1/"])
def test_where_nothing_listens_no_cluster_answers(address: str) -> None:
    with pytest.raises(ResourceError, match="no cluster answers there; check the address"):
        demand_admission(address, token="")
