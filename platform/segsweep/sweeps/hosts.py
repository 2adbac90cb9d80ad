"""A cluster's file as Ray reads it, and what is refused before anything starts: gaps, unknown fields, a cluster open to others."""

import io
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import jsonschema
import ray.autoscaler
import yaml
from jsonschema.validators import validator_for
from ray.autoscaler._private.util import prepare_config, validate_config

from segsweep.errors import InputError, ResourceError

# `<bucket>` stands for what only the user knows. Shell's `<file` and `<<'END'` are none.
GAP = re.compile(r"<([a-z][a-z ]*)>")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
DASHBOARD = re.compile(r"--dashboard-host[= ](\S+)")
WITH_TOKEN = re.compile(r"\bRAY_AUTH_MODE=token\b.*\bray start\b", re.DOTALL)
SCHEMA = Path(ray.autoscaler.__file__).with_name("ray-schema.json")
# What a checkout's own files are copied to, and a file that no other folder would hold.
CHECKOUT, OURS = "~/segsweep/pyproject.toml", 'name = "segsweep"'


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A cluster's file that may be started. `config` is what Ray makes of it, its defaults filled in."""

    file: Path
    config: Mapping[str, Any]

    @property
    def local(self) -> bool:
        """Whether its hosts are the user's own."""
        return self.config["provider"]["type"] == "local"

    @property
    def name(self) -> str:
        """The cluster's name."""
        return str(self.config["cluster_name"])

    @property
    def hosts(self) -> tuple[str, ...]:
        """Addresses of the user's own hosts, the head's first; none in a cloud."""
        provider = self.config["provider"]
        return (provider["head_ip"], *provider["worker_ips"]) if self.local else ()

    @property
    def wanted(self) -> int:
        """How many nodes are there without any work: all hosts of one's own; in a cloud the head and what must always be there."""
        return 1 + sum(each.get("min_workers", 0) for each in self.config["available_node_types"].values())


def read_launch(file: Path) -> Launch:
    """The file as Ray reads it. Raises InputError for one with gaps or that Ray cannot use, ResourceError where Ray lacks a package."""
    if not file.is_file():
        raise InputError(f"{file}: no such file; expected a cluster's file as docs/cluster-onprem.yaml")
    try:
        found = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: is no YAML ({_flat(error)}); correct it") from None
    if not isinstance(found, dict) or not isinstance(found.get("provider"), dict):
        raise InputError(f"{file}: has no `provider`; expected a cluster's file as docs/cluster-onprem.yaml")
    _demand_no_gaps(found, file=file)
    launch = Launch(file=file, config=_prepared(found, file=file))
    if not re.fullmatch(r"[\w.-]+", launch.name):
        raise InputError(
            f"{file}: cluster_name: {launch.name!r} would name files; expected letters, digits, dots, - and _"
        )
    if "ssh_user" not in launch.config["auth"]:
        raise InputError(f"{file}: auth: has no ssh_user; expected the user who may log in on every host")
    if launch.config["provider"]["type"] == "aws" and not find_spec("boto3"):
        raise ResourceError(f"{file}: provider aws needs boto3, which is not installed; `pip install boto3`")
    return launch


def demand_startable(launch: Launch, *, insecure: bool) -> None:
    """Raise InputError for files that are not there, and ResourceError for a cluster that others could use, unless `insecure`."""
    _demand_files(launch)
    if not insecure:
        _demand_closed(launch)


def _prepared(found: dict[str, Any], *, file: Path) -> dict[str, Any]:
    """Ray's own reading of the file, by Ray's own schema."""
    try:
        _demand_types(found)
        with redirect_stdout(io.StringIO()):  # what it says there is meant for users of Docker, or repeats the error
            config = prepare_config(found)
        validate_config(config)
    except jsonschema.ValidationError as error:
        where = ".".join(str(part) for part in error.absolute_path) or "the file"
        raise InputError(f"{file}: {where}: {_flat(error.message)}; correct it") from None
    except (click.ClickException, LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise InputError(f"{file}: Ray cannot use it ({_flat(error)}); correct it") from None
    return config


def _demand_types(found: dict[str, Any]) -> None:
    """Raise ValidationError for an empty field, or one of another type: Ray fills in its defaults first, and fails there without a name."""
    schema = json.loads(SCHEMA.read_text())
    for error in validator_for(schema)(schema).iter_errors(found):
        if error.validator == "type":
            raise error
    for target, source in found.get("file_mounts", {}).items():  # of which the schema says nothing
        if not isinstance(source, str):
            raise jsonschema.ValidationError(f"{source} is not of type 'string'", path=("file_mounts", target))


def _demand_no_gaps(found: object, *, file: Path) -> None:
    gaps = {gap: where for where, text in _texts(found) for gap in reversed(GAP.findall(text))}
    if gaps:
        listed = ", ".join(f"<{gap}> in {where}" for gap, where in gaps.items())
        raise InputError(f"{file}: still holds {listed}; put your own there")


def _texts(value: object, *, where: str = "") -> Iterator[tuple[str, str]]:
    """Every text with the field that holds it."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _texts(part, where=f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part, where=where)


def _demand_files(launch: Launch) -> None:
    """Sources are looked for where the command runs, as Ray does."""
    mounts = {target: Path(source).expanduser() for target, source in launch.config["file_mounts"].items()}
    ours = mounts.get(CHECKOUT)
    if ours and not (ours.is_file() and OURS in ours.read_text()):
        raise InputError(
            f"{launch.file}: file_mounts: {ours} is no file of segsweep; give the command in the root of the checkout"
        )
    for target, source in mounts.items():
        if not source.exists() and "auth_token" not in target:
            raise InputError(f"{launch.file}: file_mounts: {source} does not exist; expected what goes to {target}")


def _demand_closed(launch: Launch) -> None:
    """Raise ResourceError for commands that start Ray open, which it does wherever it is not told to ask for a token."""
    for field in ("head_start_ray_commands", "worker_start_ray_commands"):
        for command in launch.config[field]:
            if "ray start" not in command:
                continue
            if not WITH_TOKEN.search(command):
                raise ResourceError(
                    f"{launch.file}: {field}: `ray start` without RAY_AUTH_MODE=token lets anyone run programs on the cluster; put it "
                    "before the command, or start it so with --insecure"
                )
            for host in DASHBOARD.findall(command):
                if host not in LOOPBACK:
                    raise ResourceError(
                        f"{launch.file}: {field}: --dashboard-host={host} shows the dashboard to the network; expected 127.0.0.1 (reach it "
                        "by `ray attach FILE -p 8265`), or start it so with --insecure"
                    )


def _flat(error: object) -> str:
    return " ".join(str(error).split())
