"""The clusters' files that we give away are Ray's by its own schema, complete but for named gaps, and closed to others."""

import itertools
import re
from pathlib import Path

import boto3
import pytest
import yaml
from moto import mock_aws
from ray.autoscaler._private.aws.config import bootstrap_aws

from segsweep.errors import InputError, ResourceError
from segsweep.sweeps import hosts
from segsweep.sweeps.hosts import demand_startable, read_launch

ROOT = Path(__file__).resolve().parents[2]
FILES = ("cluster.yaml", "docs/cluster-onprem.yaml")


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """The file for hosts of one's own, its gaps filled."""
    file = tmp_path / "mine.yaml"
    text = (ROOT / "docs/cluster-onprem.yaml").read_text()
    file.write_text(hosts.GAP.sub("10.0.0.1", text.replace("[<worker address>]", "[10.0.0.2, 10.0.0.3]")))
    return file


@pytest.mark.parametrize("name", FILES)
def test_gaps_are_refused_by_name(name: str) -> None:
    with pytest.raises(InputError, match=rf"^{name}: still holds <.*put your own there$") as refused:
        read_launch(Path(name))
    for gap in set(
        hosts.GAP.findall("\n".join(line.partition("#")[0] for line in Path(name).read_text().splitlines()))
    ):
        assert f"<{gap}> in " in str(refused.value)


@pytest.mark.parametrize(("name", "wanted", "local"), [(FILES[0], 1, False), (FILES[1], 2, True)])
def test_filled_files_are_ray_s(name: str, wanted: int, local: bool, tmp_path: Path) -> None:
    file = tmp_path / "filled.yaml"
    file.write_text(hosts.GAP.sub("filled", (ROOT / name).read_text()))
    launch = read_launch(file)
    demand_startable(launch, insecure=False)
    assert (launch.name, launch.wanted, launch.local) == ("segsweep", wanted, local)
    types = launch.config["available_node_types"]
    if not local:
        assert types["head"]["resources"] == {"CPU": 0}
        assert types["spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert types["spot"]["priority"] > types["on_demand"]["priority"]
        assert types["spot"]["node_config"]["ImageId"] == types["on_demand"]["node_config"]["ImageId"]


def test_in_aws_ray_lets_in_nobody_but_whom_our_group_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own group, for any type of node that has none, lets in ssh from everywhere."""
    monkeypatch.setenv("HOME", str(tmp_path))  # where it keeps the key that it makes
    (tmp_path / ".ssh").mkdir()
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        client = boto3.client("ec2", region_name="us-east-1")
        group = client.create_security_group(GroupName="mine", Description="mine")["GroupId"]
        before = client.describe_security_groups()["SecurityGroups"]
        text = (ROOT / "cluster.yaml").read_text().replace("<region>", "us-east-1").replace("<zone>", "us-east-1a")
        (tmp_path / "mine.yaml").write_text(hosts.GAP.sub("filled", text.replace("<security group>", group)))
        ready = bootstrap_aws(dict(read_launch(tmp_path / "mine.yaml").config))
        assert [each["node_config"]["SecurityGroupIds"] for each in ready["available_node_types"].values()] == [
            [group]
        ] * 3
        assert client.describe_security_groups()["SecurityGroups"] == before


@pytest.mark.parametrize("name", FILES)
def test_every_field_says_why(name: str) -> None:
    """A comment stands above it, or inside."""
    lines = (ROOT / name).read_text().splitlines()
    starts = [number for number, line in enumerate(lines) if re.match(r"[a-z_]+:", line)]
    assert len(starts) == len(yaml.safe_load((ROOT / name).read_text()))
    for start, end in itertools.pairwise([*starts, len(lines)]):
        assert any(line.lstrip().startswith("#") for line in lines[start - 1 : end - 1]), lines[start]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("cluster_name: segsweep", "cluster_nam: segsweep", "the file: .*cluster_nam.*; correct it"),
        ("cluster_name: segsweep", "cluster_name: lab/a", "cluster_name: 'lab/a' would name files; expected letters"),
        ("  ssh_user:", "  ssh_usr:", "auth: .*ssh_usr.*; correct it"),
        ("  head_ip:", "  head:", "Ray cannot use it .*head_ip.*; correct it"),
        ("provider:\n", "provider: [\n", "is no YAML"),
        ("provider:\n", "providers:\n", "has no `provider`"),
        ("[10.0.0.2, 10.0.0.3]", "", "provider.worker_ips: None is not of type 'array'; correct it"),
        (
            "initialization_commands: []",
            "initialization_commands:",
            "initialization_commands: None is not of type 'array'; correct it",
        ),
        (
            "rsync_exclude:",
            "available_node_types: {a: }\nrsync_exclude:",
            "available_node_types.a: None is not of type 'object'",
        ),
        (
            "platform: platform",
            "platform:",
            "file_mounts.~/segsweep/platform: None is not of type 'string'; correct it",
        ),
        ("  ssh_user:", "  #", "auth: has no ssh_user; expected the user who may log in"),
    ],
)
def test_what_ray_could_not_use_is_refused(filled: Path, old: str, new: str, sentence: str) -> None:
    assert old in filled.read_text()
    filled.write_text(filled.read_text().replace(old, new))
    with pytest.raises(InputError, match=rf"mine\.yaml: {sentence}"):
        read_launch(filled)
    filled.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"mine\.yaml: is no YAML \('utf-8' codec"):
        read_launch(filled)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            "RAY_AUTH_MODE=token ray start --head",
            "ray start --head",
            "head_start_ray_commands: `ray start` without RAY_AUTH_MODE=token",
        ),
        (
            "RAY_AUTH_MODE=token ray start --add",
            "ray start --add",
            "worker_start_ray_commands: `ray start` without RAY_AUTH_MODE=token",
        ),
        (
            "--dashboard-host=127.0.0.1",
            "--dashboard-host=0.0.0.0",
            "--dashboard-host=0.0.0.0 shows the dashboard to the network",
        ),
    ],
)
def test_a_cluster_open_to_others_is_refused_unless_asked_for(filled: Path, old: str, new: str, sentence: str) -> None:
    filled.write_text(filled.read_text().replace(old, new))
    launch = read_launch(filled)
    with pytest.raises(ResourceError, match=f"{sentence}.*--insecure"):
        demand_startable(launch, insecure=False)
    demand_startable(launch, insecure=True)
    assert launch.hosts == ("10.0.0.1", "10.0.0.2", "10.0.0.3")


def test_start_commands_that_ray_would_fill_in_are_refused(filled: Path) -> None:
    """Its own start without a token, whatever stands in the file's other fields."""
    config = yaml.safe_load(filled.read_text())
    del config["worker_start_ray_commands"]
    filled.write_text(yaml.safe_dump(config))
    with pytest.raises(ResourceError, match="worker_start_ray_commands: `ray start` without"):
        demand_startable(read_launch(filled), insecure=False)


def test_elsewhere_than_in_the_checkout_it_is_refused(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=r"pyproject\.toml is no file of segsweep; give the command in the root of the checkout"
    ):
        demand_startable(read_launch(filled), insecure=False)
    (tmp_path / "pyproject.toml").write_text('name = "segsweep"')
    with pytest.raises(
        InputError, match=r"file_mounts: platform does not exist; expected what goes to ~/segsweep/platform"
    ):
        demand_startable(read_launch(filled), insecure=False)
    with pytest.raises(InputError, match=r"nowhere\.yaml: no such file"):
        read_launch(Path("nowhere.yaml"))


def test_aws_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "find_spec", lambda name: None)  # noqa: ARG005
    file = tmp_path / "filled.yaml"
    file.write_text(hosts.GAP.sub("filled", (ROOT / "cluster.yaml").read_text()))
    with pytest.raises(ResourceError, match="provider aws needs boto3"):
        read_launch(file)
