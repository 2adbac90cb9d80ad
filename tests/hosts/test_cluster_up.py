"""`segsweep cluster up` on three hosts, who may use what it starts, a sweep over both workers, and nothing left after `down`.

Run: python -m pytest tests/hosts --hosts -s (root; about 6 minutes on two cores).
"""

import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from segsweep import recipes

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(1500)]

JOBS = "http://127.0.0.1:8265/api/jobs/"
# A user's own recipes, in a folder that only the head has: each process that builds a network says on which node.
TRAINABLE = '''
"""The U-Net, which says on which node it is built."""
import os
from pathlib import Path

import ray

from segsweep.trainables import unet

Params = unet.Params


def build(params, task):
    if ray.is_initialized():
        (Path(os.environ["SEGSWEEP_WORKSPACE"]).parent / "seen" / ray.get_runtime_context().get_node_id()).touch()
    return unet.build(params, task)
'''
SPACE = '''
"""A sweep over the learning rate of the U-Net of this folder."""
TRAINABLE = "traced"


def space(trial, plan):
    return {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2)}
'''
TINY = "epochs=1 iterations=2 validation_iterations=1 patch_size=16,32,32 batch_size=2 features=4 levels=3"
# The fake of AWS's instance metadata: a session must be asked for first; there is a note once a file is there.
METADATA = """
import datetime, http.server, json, pathlib
class Answer(http.server.BaseHTTPRequestHandler):
    def do_PUT(self): self.say("session")
    def do_GET(self):
        known = self.headers.get("X-aws-ec2-metadata-token") == "session"
        note = pathlib.Path("/run/note").exists()
        at = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=110)
        texts = {"instance-life-cycle": "spot", "instance-action": note and json.dumps({"action": "terminate", "time": f"{at:%FT%TZ}"})}
        self.say(known and texts.get(self.path.rpartition("/")[2]))
    def say(self, text):
        self.send_response(200 if text else 404)
        self.end_headers()
        self.wfile.write((text or "").encode())
http.server.HTTPServer(("127.0.0.1", 8169), Answer).serve_forever()
"""
# Ids of the nodes that train.
NODES = (
    "import ray; from segsweep.sweeps.cluster import connect; connect(); "
    "print(*(node['NodeID'] for node in ray.nodes() if node['Alive'] and node['Resources'].get('CPU')))"
)
# An actor on the node of an address, and each second the addresses of nodes that drain.
BUSY = """
import sys, time
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
from segsweep.sweeps.cluster import connect
connect()
nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
@ray.remote(num_cpus=1)
class Busy:
    def here(self): return True
here = On(next(name for name, address in nodes.items() if address == sys.argv[1]), soft=False)
busy = Busy.options(scheduling_strategy=here).remote()
print("busy" if ray.get(busy.here.remote()) else "", flush=True)
for _ in range(60):
    time.sleep(1)
    print([nodes[name] for name in ray._private.state.state.get_draining_nodes()], flush=True)
"""


@pytest.fixture(scope="module")
def hosts(make_hosts: Callable[..., Any]) -> Iterator[Any]:
    """Three hosts under a cluster that `segsweep cluster up` started; what it said is `hosts.folder / "up.txt"`."""
    with make_hosts(prefix="ca", subnet="10.91.0") as made:
        recipes.load("datasets", name="phantom").make(made.shared / "raw", cases=6, seed=0)
        made.write_file()
        began = time.monotonic()
        said = made.cluster("up")
        (made.folder / "up.txt").write_text(said)
        _log(f"up, {time.monotonic() - began:.0f} s", said)
        yield made
        if any(made.processes(host) for host in (made.head, *made.workers)):
            made.cluster("down", check=False)


def test_up_brings_all_nodes_in_and_says_what_to_do_next(hosts: Any) -> None:
    said = (hosts.folder / "up.txt").read_text()
    assert "head: [7/7]" in said and "nodes: 3 of 3 are in" in said
    assert "next: ray attach" in said and re.search(r"pages: ray attach \S+ -p 8265 -p 5000", said)
    shown = hosts.cluster("status")
    _log("status", shown)
    assert len(re.findall(r" worker +0 of 2 CPU busy", shown)) == 2
    assert re.search(rf"{hosts.address(hosts.head)} +head +\d+ GB", shown)


def test_only_who_shows_the_token_is_let_in(hosts: Any) -> None:
    token = (hosts.folder / hosts.laptop / "home/.ray/auth_token").read_text()
    codes = [_http(hosts, JOBS, token=shown) for shown in ("", "wrong", token)]
    assert codes == ["401", "403", "200"]
    assert _http(hosts, JOBS, token="", more='-X POST -d \'{"entrypoint": "id"}\'') == "401"
    address = f"{hosts.address(hosts.head)}:6379"
    strangers = {"has none": "", "has another": "RAY_AUTH_MODE=token RAY_AUTH_TOKEN=another"}
    for name, environment in strangers.items():
        place = f"export HOME=$(mktemp -d) RAY_ADDRESS={address} {environment};"
        said = hosts.run(hosts.laptop, f"{place} python -c 'import ray; ray.init()' 2>&1", check=False)
        assert "Failed to connect to Ray cluster" in said, name
        said = hosts.run(
            hosts.laptop, f"{place} cd $HOME; segsweep convert phantom {hosts.shared}/raw --store s", check=False
        )
        _log(f"a client that {name}", said)
        assert re.search(
            r"segsweep: RAY_ADDRESS=\S+: the cluster (asks for a token, and there is none|does not take the token) in",
            said,
        )
    submit = "RAY_AUTH_MODE=disabled RAY_ADDRESS=http://127.0.0.1:8265 ray job submit -- id 2>&1"
    assert re.search("401|authentication|token", hosts.run(hosts.head, submit, check=False))
    join = f"RAY_ADDRESS={address} python -c 'from segsweep.sweeps.cluster import connect; connect(); print(\"in\")'"
    assert hosts.run(hosts.head, join).endswith("in\n")
    # With the token, but on no node of the cluster.
    assert "the cluster answers, but Ray cannot join it from here" in hosts.run(hosts.laptop, join, check=False)


def test_the_token_is_its_owners_alone_and_shows_nowhere(hosts: Any) -> None:
    token = (hosts.folder / hosts.laptop / "home/.ray/auth_token").read_text()
    for host in (hosts.laptop, hosts.head, *hosts.workers):
        assert hosts.run(host, "stat -c %a ~/.ray ~/.ray/auth_token").split() == ["700", "600"], host
        assert token not in "\n".join(hosts.processes(host))
        assert not hosts.run(
            host, f"grep -rlsFf ~/.ray/auth_token /tmp/ray ~/.ray/*.log {hosts.folder}/up.txt", check=False
        ).strip()


def test_nothing_listens_beyond_loopback_but_what_nodes_need(hosts: Any) -> None:
    """Ray 2.60 has no option that binds its node services to one address; those answer to the token, its metrics to all."""
    for host in (hosts.head, *hosts.workers):
        listed = hosts.run(host, "ss -ltnpH")
        _log(f"{host} listens", listed)
        open_ = {}
        for line in listed.splitlines():
            _, _, _, place, _, user = line.split(maxsplit=5)
            address, _, port = place.rpartition(":")
            if "127.0.0.1" not in address and int(port) != 22:
                open_[int(port)] = re.findall(r'"([^"]+)"', user)[0]
        assert 8265 not in open_ and 5000 not in open_, "dashboard and MLflow"
        known = {"raylet", "gcs_server", "ray::DashboardA", "ray::RuntimeEnv"}
        assert {user for port, user in open_.items() if port not in (10001, 44217, 44227)} <= known
    for port in (52365, 10001, 6379):
        assert not _http(hosts, f"http://{hosts.address(hosts.head)}:{port}/api/job_agent/jobs/", token="").startswith(
            "2"
        ), port


def test_a_sweep_with_recipes_of_the_head_runs_on_both_workers(hosts: Any) -> None:
    (hosts.shared / "seen").mkdir()
    for name, text in {"trainables/traced.py": TRAINABLE, "search_spaces/traced.py": SPACE}.items():
        _write(hosts, f"/run/mine/{name}", text)
    began = time.monotonic()
    _log(
        "convert",
        hosts.run(hosts.head, f"segsweep convert phantom {hosts.shared}/raw --store {hosts.shared}/store"),
    )
    command = (
        f"SEGSWEEP_PROJECT=/run/mine segsweep tune traced {hosts.shared}/store trials=4 concurrent=2 register=1 {TINY}"
    )
    said = hosts.run(hosts.head, command)
    _log(f"convert and tune, {time.monotonic() - began:.0f} s", said)
    assert "ended" in said
    listed = hosts.run(hosts.head, f'python -c "{NODES}"').splitlines()[-1].split()
    assert len(listed) == 2
    # The head's is there too: the driver builds a network to reckon its memory.
    assert set(listed) <= {path.name for path in (hosts.shared / "seen").iterdir()}
    shutil.rmtree(hosts.shared / "seen")
    (hosts.shared / "seen").mkdir()
    rank = hosts.run(
        hosts.head,
        f"SEGSWEEP_PROJECT=/run/mine segsweep train traced {hosts.shared}/store workers=2 fold=0 {TINY} seed=7",
    )
    _log("train on both at once", rank)
    assert set(listed) <= {path.name for path in (hosts.shared / "seen").iterdir()}
    token = (hosts.folder / hosts.laptop / "home/.ray/auth_token").read_text()
    assert not [path for path in hosts.shared.rglob("*") if path.is_file() and token.encode() in path.read_bytes()], (
        "nor in MLflow's database"
    )


def test_a_spot_note_drains_the_node(hosts: Any) -> None:
    worker = hosts.workers[0]
    _write(hosts, "/run/metadata.py", METADATA, host=worker)
    hosts.run(worker, "setsid --fork python /run/metadata.py > /run/metadata.log 2>&1 < /dev/null")
    watch = "AWS_EC2_METADATA_SERVICE_ENDPOINT=http://127.0.0.1:8169 setsid --fork python -m segsweep.sweeps.spot"
    hosts.run(worker, f"{watch} > /run/spot.log 2>&1 < /dev/null")
    time.sleep(8)
    assert "draining" not in hosts.run(worker, "cat /run/spot.log")
    # A node without work would end at once.
    _write(hosts, "/run/busy.py", BUSY)
    hosts.run(hosts.head, f"setsid --fork python /run/busy.py {hosts.address(worker)} > /run/busy.log 2>&1 < /dev/null")
    _until(lambda: "busy" in hosts.run(hosts.head, "cat /run/busy.log"))
    hosts.run(worker, "touch /run/note")
    _until(lambda: "draining: AWS will terminate" in hosts.run(worker, "cat /run/spot.log"))
    _until(lambda: "10." in hosts.run(hosts.head, "tail -n 1 /run/busy.log"))
    assert hosts.run(hosts.head, "tail -n 1 /run/busy.log").strip() == f"['{hosts.address(worker)}']"


def test_down_leaves_no_ray_process_on_any_host(hosts: Any) -> None:
    assert hosts.processes(hosts.head) and hosts.processes(hosts.workers[1])
    began = time.monotonic()
    said = hosts.cluster("down")
    _log(f"down, {time.monotonic() - began:.0f} s", said)
    assert "no Ray process is left on 3 hosts" in said
    assert [hosts.processes(host) for host in (hosts.head, *hosts.workers)] == [[], [], []]
    assert "segsweep: RAY_ADDRESS=auto: no Ray runs on this machine" in hosts.run(
        hosts.head, f"segsweep convert phantom {hosts.shared}/raw --store /run/s", check=False
    )


def test_a_host_out_of_reach_is_named_in_a_sentence(hosts: Any) -> None:
    hosts.cut(hosts.workers[1])
    said = hosts.cluster("up", check=False)
    hosts.join(hosts.workers[1])
    _log("up with a host cut off", said)
    assert re.search(
        rf"^segsweep: \S+: no ssh to root@{hosts.address(hosts.workers[1])}: .*must work without a question$",
        said,
        re.MULTILINE,
    )


def test_a_cluster_that_asks_for_no_token_is_one_that_was_asked_for(hosts: Any) -> None:
    hosts.file.write_text(hosts.file.read_text().replace("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled"))
    said = hosts.cluster("up", check=False)
    assert re.search(
        "`ray start` without RAY_AUTH_MODE=token lets anyone run programs on the cluster; .*--insecure", said
    )
    said = hosts.cluster("up --insecure")
    _log("up --insecure", said)
    assert "nodes: 3 of 3 are in" in said
    assert _http(hosts, JOBS, token="") == "200"
    assert len(re.findall(r" worker +0 of 2 CPU busy", hosts.cluster("status"))) == 2
    hosts.cluster("down")
    assert [hosts.processes(host) for host in (hosts.head, *hosts.workers)] == [[], [], []]


def _http(hosts: Any, url: str, *, token: str, more: str = "") -> str:
    """The status of a request from the head itself."""
    shown = f"-H 'Authorization: Bearer {token}'" if token else ""
    return hosts.run(
        hosts.head,
        f"curl --silent --max-time 10 --output /dev/null --write-out '%{{http_code}}' {shown} {more} {url}",
        check=False,
    )


def _write(hosts: Any, path: str, text: str, *, host: str = "") -> None:
    """A file in a host's own part of the tree."""
    hosts.run(host or hosts.head, f"mkdir -p {Path(path).parent} && cat > {path} <<'END'\n{text}\nEND")


def _until(ready: Callable[[], bool], *, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(1)


def _log(title: str, text: str) -> None:
    """With -s, the run's own record."""
    print(f"\n=== {time.strftime('%H:%M:%S')} {title}\n{text.rstrip()}", flush=True)
