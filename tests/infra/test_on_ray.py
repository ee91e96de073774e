"""The manifests' command lines in a real Ray, in pods as near as one machine comes to them (infra)."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import tiny_flags
from tests.infra.conftest import ROOT, build, job_specs, settings
from tests.infra.lint import Manifest

# As a pod of k8s/base/job.yaml: user 1000 without capabilities, nothing writable but /tmp and /dev/shm, no network
# beyond its own. Python may lie below /root, which that user cannot enter.
POD = """
set -eu
ip link set lo up
mount --bind {python} /mnt
case {python} in /root/*) mount -t tmpfs -o mode=755 tmpfs /root; mkdir -p {python}; mount --bind /mnt {python};; esac
cp {script} /dev/shm/script
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -o remount,bind,ro /
cd {root}
exec env -i {environment} setpriv --reuid=1000 --regid=100 --clear-groups --no-new-privs --bounding-set=-all \\
  --inh-caps=-all bash /dev/shm/script
"""
# A head without CPUs and a worker with the overlay's two, each with Ray's tokens, as the operator starts them; and what
# its submitter runs. Every job's end goes into a line `RESULT <name> <exit status>`.
RAY = """
set -u
up() {{
  ray start --head --block --node-ip-address=127.0.0.1 --num-cpus=0 --metrics-export-port=8080 \\
    --dashboard-host=127.0.0.1 >/tmp/head.log 2>&1 &
  until ray health-check --address 127.0.0.1:6379 >/dev/null 2>&1; do sleep 1; done
  ray start --address=127.0.0.1:6379 --block --node-ip-address=127.0.0.1 --num-cpus=2 --metrics-export-port=8081 \\
    --dashboard-agent-listen-port=52366 >/tmp/worker.log 2>&1 &
  until ray status --address 127.0.0.1:6379 2>/dev/null | grep -q '/2.0 CPU'; do sleep 1; done
  until ray job list --address http://127.0.0.1:8265 >/dev/null 2>&1; do sleep 1; done
}}
submit() {{
  ray job submit --address http://127.0.0.1:8265 "${{@:2}}" >/tmp/out 2>&1
  echo "RESULT $1 $?"
  grep -oE 'failed with exit code [0-9]+' /tmp/out
  tail -8 /tmp/out
}}
for place in {root}/new /opt/new "$HOME/new"; do touch "$place" 2>/dev/null && echo "WRITABLE $place"; done

up
python - <<'END'
import urllib.error, urllib.request
try:
    urllib.request.urlopen("http://127.0.0.1:8265/api/jobs/")
except urllib.error.HTTPError as error:
    print("WITHOUT TOKEN", error.code)
END
submit raw -- python jobs/phantom.py --out /tmp/raw --train 3 --validate 2
submit packed -- python jobs/pack.py --source /tmp/raw --out $OASISGEN_ROOT/datasets/$OASISGEN_DATASET
submit trained -- {train} {tiny}
submit again -- {train} {tiny}
submit first -- {first} {lenient}

# The second night is killed with its whole cluster, and retried on another, as the operator does.
submit started --no-wait -- {second} {lenient}
until ls $OASISGEN_ROOT/batches/2026-11-24/* >/dev/null 2>&1; do sleep 0.2; done
kill -9 -1
wait
rm -rf /tmp/ray
up
submit second -- {second} {lenient}
# The third is measured as it should be, and quarantined; its retry ends at once.
submit third -- {third}
submit retried -- {third}
python -c 'import urllib.request as u; print(u.urlopen("http://127.0.0.1:8080/metrics").read().decode())' \\
  | grep -oE '^ray_(oasisgen|node_cpu_utilization)\\w*' | sort -u | sed 's/^/METRIC /'
grep -oE '2026-11-[0-9]+|released|quarantined' $OASISGEN_ROOT/batches/index.html | sort | uniq -c | sed 's/^/PAGE /'
"""
IMAGE = (ROOT / "k8s/Dockerfile").read_text()
LENIENT = "--gate.ssim-real 1 --gate.ms-ssim 1 --gate.fid 1e9 --gate.precision 0 --gate.recall 0 --gate.copies 1"


@pytest.mark.infra
@pytest.mark.timeout(1200)
def test_training_and_three_nights(night: Callable[..., tuple[int, Manifest]], tmp_path: Path) -> None:
    if not shutil.which("unshare") or subprocess.run(["unshare", "-mpnf", "true"], capture_output=True).returncode:
        pytest.skip("no namespaces here: no stand-in for a pod")
    manifests = build(ROOT / "k8s/overlays/cpu-small")
    nights = [night(f"2026-11-{day}")[1]["spec"]["entrypoint"] for day in (23, 24, 25)]
    script, bin_folder = tmp_path / "script", Path(sys.executable).parent
    script.write_text(
        RAY.format(
            root=ROOT,
            train=job_specs(manifests)["train"]["entrypoint"],
            tiny=" ".join(tiny_flags("", "")[5:]),
            **dict(zip(("first", "second", "third"), nights, strict=True)),
            lenient=LENIENT,
        )
    )
    environment = dict(re.findall(r"(\w+)=(\S+)", " ".join(re.findall(r"^ENV ((?:.*\\\n)*.*)$", IMAGE, re.M))))
    environment |= settings(manifests) | {
        "OASISGEN_ROOT": "/tmp/root",
        "PATH": f"{bin_folder}:/usr/bin:/bin",
        "HOME": "/opt",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "a-token-of-the-test-0123456789abcdef",
    }
    pod = POD.format(
        python=sys.base_prefix,
        root=ROOT,
        script=script,
        environment=" ".join(f"{name}={value}" for name, value in environment.items()),
    )
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--net", "--ipc", "--fork", "--mount-proc", "bash", "-c", pod],
        capture_output=True,
        text=True,
        timeout=1150,
    )
    said = done.stdout
    results = dict(re.findall(r"^RESULT (\w+) (\d+)$", said, re.M))
    fine = dict.fromkeys(("raw", "packed", "trained", "again", "first", "started", "second"), "0")
    assert results == fine | {"third": "1", "retried": "1"}, said + done.stderr
    assert said.count("failed with exit code 3") == 2, said
    assert "WRITABLE" not in said
    assert "WITHOUT TOKEN 401" in said
    assert "METRIC ray_node_cpu_utilization" in said
    page = set(re.findall(r"^PAGE +\d+ (\S+)$", said, re.M))
    assert {"2026-11-23", "2026-11-24", "2026-11-25", "released", "quarantined"} <= page
