"""Verbs for many machines: cluster up, cluster status, cluster down."""
# ruff: noqa: PLC0415

from pathlib import Path
from typing import Annotated, Any

import typer

from segsweep.cli.app import app
from segsweep.errors import ResourceError
from segsweep.terminal import complain, counted, say

File = Annotated[Path, typer.Argument(metavar="FILE", help="The cluster's file.")]

cluster = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="""Start, look at and end a cluster: hosts of your own, or AWS.

    FILE is cluster.yaml (AWS) unless given; docs/cluster-onprem.yaml is one for
    hosts of your own. Copy it and fill in the places marked <...>.

    Examples:
      segsweep cluster up my-cluster.yaml
      segsweep cluster status my-cluster.yaml
      segsweep cluster down my-cluster.yaml
    """,
)
app.add_typer(cluster, name="cluster")


@cluster.command()
def up(
    file: File = Path("cluster.yaml"),
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Start even a cluster that lets anyone run programs on it.")
    ] = False,
) -> None:
    """Start the cluster, or bring it up to date.

    Makes the token that clients must show (~/.ray/auth_token) where there is
    none, checks the file, and waits until the nodes are in. Give the command in
    the root of the checkout, which goes to every node.

    Example:
      segsweep cluster up my-cluster.yaml
    """
    from segsweep.sweeps import launching
    from segsweep.sweeps.hosts import demand_startable, read_launch

    launch = read_launch(file)
    demand_startable(launch, insecure=insecure)
    _show(launching.up(launch, tell=say))
    say(f"next: ray attach {file}   (a shell on the head; there: segsweep tune SPACE STORE trials=20)")
    _pages(file)


@cluster.command()
def status(file: File = Path("cluster.yaml")) -> None:
    """Show the cluster's nodes, what is busy, and how to see its pages.

    Example:
      segsweep cluster status my-cluster.yaml
    """
    from segsweep.sweeps import launching
    from segsweep.sweeps.hosts import read_launch

    launch = read_launch(file)
    _show(launching.status(launch))
    _pages(file)


@cluster.command()
def down(file: File = Path("cluster.yaml")) -> None:
    """End the cluster.

    On hosts of your own, every Ray process of every host; MLflow on the head goes
    on. In AWS spot workers are deleted; the head and on-demand workers are
    stopped, and their disks, the head's with MLflow's database, are kept for the
    next `up`, and cost a little.

    Example:
      segsweep cluster down my-cluster.yaml
    """
    from segsweep.sweeps import launching
    from segsweep.sweeps.hosts import read_launch

    launch = read_launch(file)
    left = launching.down(launch, tell=say)
    for host in left:
        complain(
            f"{host.host}: {host.trouble or 'Ray processes that do not end: ' + ' '.join(map(str, host.processes))}; end them there"
        )
    if left:
        raise ResourceError(f"{counted(len(left), noun='host')} may still run Ray; give the same command again")
    say(f"down: no Ray process is left on {counted(len(launch.hosts), noun='host')}" if launch.local else "down")


def _show(nodes: list[dict[str, Any]]) -> None:
    for node in sorted(nodes, key=lambda node: (not node["head"], node["address"])):
        parts = [
            f"{node['busy'][name]:g} of {node['all'][name]:g} {name} busy"
            for name in ("CPU", "GPU")
            if node["all"][name]
        ]
        memory = f"{node['all']['memory'] / 1e9:.0f} GB"
        say(f"  {node['address']:16} {'head' if node['head'] else 'worker':7} {', '.join([*parts, memory])}")


def _pages(file: Path) -> None:
    say(f"pages: ray attach {file} -p 8265 -p 5000")
    say("       then http://127.0.0.1:8265 is Ray's dashboard (it asks for the token), http://127.0.0.1:5000 MLflow")
