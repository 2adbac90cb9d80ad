"""What goes wrong while a cluster starts is one sentence; tests/hosts starts real ones."""

from pathlib import Path

import pytest
import yaml

from segsweep.errors import ResourceError
from segsweep.sweeps import launching
from segsweep.sweeps.hosts import Launch
from segsweep.sweeps.token import TOKEN


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launch:
    """Hosts that no ssh reaches, of a user without a token."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(TOKEN, raising=False)
    config = {
        "cluster_name": "mine",
        "provider": {"type": "local", "head_ip": "10.0.0.1", "worker_ips": ["10.0.0.2"]},
        "auth": {"ssh_user": "me", "ssh_private_key": str(tmp_path / "key"), "ssh_proxy_command": "false"},
        "file_mounts": {"~/.ray/auth_token": "~/.ray/auth_token"},
        "available_node_types": {"local.cluster.node": {"min_workers": 1}},
    }
    return Launch(file=tmp_path / "mine.yaml", config=config)


def test_a_host_that_ssh_does_not_reach_is_named_before_ray_tries(launch: Launch) -> None:
    with pytest.raises(
        ResourceError,
        match=r"mine.yaml: no ssh to me@10\.0\.0\.1: .*; `ssh -i \S+key me@10\.0\.0\.1` must work without",
    ):
        launching.up(launch, tell=print)
    assert Path("~/.ray/auth_token").expanduser().stat().st_mode & 0o777 == 0o600


def test_a_token_that_the_cluster_would_not_get_is_refused(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    launching.demand_token(launch)
    monkeypatch.setenv(TOKEN, "another")
    with pytest.raises(
        ResourceError,
        match=r"ask for the token in \S+auth_token, and this user shows another \(RAY_AUTH_TOKEN\); unset",
    ):
        launching.demand_token(launch)


def test_a_command_of_ray_that_fails_is_one_sentence(launch: Launch) -> None:
    """Ray's own, on a file that it refuses."""
    launch.file.write_text(yaml.safe_dump({**launch.config, "provider": {"type": "local"}}))
    with pytest.raises(
        ResourceError, match=r"mine.yaml: `ray get-head-ip` failed: .+; correct it .* is in \S+mine-get-head-ip\.log"
    ):
        launching._ray(launch, "get-head-ip", str(launch.file), tell=print)
    assert launching.log_file(launch, "get-head-ip").read_text()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["make: *** No rule 'x'.", "Shared connection closed.", "!!!", "Failed to setup head node."], "make: *** No rule 'x'"),
        (["E: Unable to locate package y", "bash: psql: command not found", "Setup command failed."], "bash: psql: command not found"),
        (["bash: ray: command not found", 'File "x", in y', "raise X(fail)", "click.exceptions.X: fail"], "bash: ray: command not found"),
        (["one", "two", ""], "two"),
        ([], "it said nothing"),
    ],
)  # fmt: skip
def test_the_last_useful_line_is_told(lines: list[str], said: str) -> None:
    assert launching.useful(lines) == said


def test_hosts_that_cannot_be_looked_at_are_told_apart_from_clean_ones(launch: Launch) -> None:
    assert launching._stop(launch, "10.0.0.2").trouble
