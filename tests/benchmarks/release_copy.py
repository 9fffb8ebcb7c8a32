"""The line `copy` of release.py: push and pull by DVC next to boto3, to and from an S3 server."""

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REPEATS = 5
ROUND_TRIPS = (0.05, 0.01)  # seconds: to another region, within one
SCOPES = ("whole process", "imports done")
TARGET = 1.3  # times boto3

BUCKETS = """
import sys, boto3
region = "eu-test-1"
for bucket in ("libra", "bare"):
    client = boto3.client("s3", endpoint_url=sys.argv[1], region_name=region)
    location = {"LocationConstraint": region}
    client.create_bucket(Bucket=bucket, CreateBucketConfiguration=location)
"""
BOTO = """
import sys, boto3, json, time
from botocore.config import Config
start = time.perf_counter()
way, endpoint, folder, bucket = sys.argv[1:]
config = Config(s3={"addressing_style": "path"})
client = boto3.client("s3", endpoint_url=endpoint, region_name="eu-test-1", config=config)
for name in json.load(open(folder + "/names.json")):
    path = f"{folder}/{name.replace('/', '_')}"
    if way == "push":
        client.upload_file(path, bucket, "bare/" + name)
    else:
        client.download_file(bucket, "bare/" + name, path + ".back")
print(time.perf_counter() - start)
"""
DVC = """
import sys, time
import s3fs  # DVC imports it with the first object; boto3's clock starts after its imports, too
from dvc.repo import Repo
start = time.perf_counter()
with Repo(".") as repo:
    getattr(repo, sys.argv[1])()
print(time.perf_counter() - start)
"""
# A port that passes everything on with a delay in each direction.
LINK = """
import asyncio, sys
port, to, delay = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])

async def carry(reader, writer):
    loop = asyncio.get_running_loop()
    while data := await reader.read(65536):
        loop.call_later(delay, writer.write, data)
    loop.call_later(delay, writer.close)

async def accept(reader, writer):
    await asyncio.sleep(2 * delay)  # the handshake
    there, back = await asyncio.open_connection("127.0.0.1", to)
    await asyncio.gather(carry(reader, back), carry(there, writer))

async def main():
    server = await asyncio.start_server(accept, "127.0.0.1", port)
    print("ready", flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


def copy() -> list[list[str]]:
    """Rows of RELEASE.md: medians of new processes, taken in turn.

    The remote is empty before each push, and the cache before each pull.
    """
    return [
        *_compare("all that a release pushes", cached_outs()),
        *_compare("the dataset alone", ["data/librachemqa"]),
    ]


def cached_outs() -> list[str]:
    """The outputs of all stages that DVC caches: data, policies, tables, report."""
    import yaml

    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    outs = [out for stage in stages.values() for out in stage.get("outs", [])]
    options = [next(iter(out.items())) if isinstance(out, dict) else (out, {}) for out in outs]
    return [path for path, values in options if values.get("cache", True)]


def _compare(title: str, paths: list[str]) -> list[list[str]]:
    from helpers.swift_server import KEYS, REGION, free_ports
    from helpers.venvs import venv_python

    swift, boto = venv_python("swift", "swift==2.38.3"), venv_python("boto3", "boto3==1.43.29")
    dvc = str(Path(sys.executable).with_name("dvc"))
    environment = os.environ | KEYS
    times: dict[tuple[str, ...], list[float]] = {}

    def measure(who: str, way: str, place: str, command: list[str], folder: Path) -> None:
        start = time.perf_counter()
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        elapsed = time.perf_counter() - start
        assert done.returncode == 0, done.stdout + done.stderr
        seconds = elapsed, float(done.stdout.split()[-1])
        for scope, value in zip(SCOPES, seconds, strict=True):
            times.setdefault((who, way, place, scope), []).append(value)

    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as servers:
        folder = Path(name)

        def serve(*command: str) -> None:
            server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            servers.callback(lambda: (server.terminate(), server.wait(20)))
            assert server.stdout.readline() == "ready\n"

        port = free_ports(4)
        script = str(ROOT / "tests/helpers/swift_server.py")
        serve(swift, script, str(folder / "swift"), str(port))
        endpoints = {}
        for seconds in ROUND_TRIPS:
            link = free_ports(1)
            serve(sys.executable, "-c", LINK, str(link), str(port), str(seconds / 2))
            endpoints[f"{seconds * 1000:.0f} ms away"] = f"http://127.0.0.1:{link}"
        local = endpoints["on this machine"] = f"http://127.0.0.1:{port}"
        subprocess.run([boto, "-c", BUCKETS, local], check=True, env=environment)

        work, bare = folder / "work", folder / "bare"
        objects = _prepare(work, bare, paths, dvc)
        for turn, (place, endpoint) in product(range(REPEATS), endpoints.items()):
            url = f"s3://libra/{turn}/{place[:2]}"
            remote = [dvc, "remote"]
            subprocess.run([*remote, "add", "-q", "-f", "-d", "s3", url], cwd=work, check=True)
            options = {"endpointurl": endpoint, "region": REGION, "verify": "true"}
            for key, value in options.items():
                command = [*remote, "modify", "-q", "s3", key, value]
                subprocess.run(command, cwd=work, check=True)
            for way in ("push", "pull"):
                if way == "pull":
                    _delete(work, [".dvc/cache", *paths])
                measure("DVC", way, place, [sys.executable, "-c", DVC, way], work)
                command = [boto, "-c", BOTO, way, endpoint, str(bare), "bare"]
                measure("boto3", way, place, command, bare)

    size = sum(objects) / 2**20
    rows = []
    for way, place, scope in product(("push", "pull"), endpoints, SCOPES):
        line = f"{way} of {title}, {len(objects)} objects, {size:.1f} MiB, server {place}, {scope}"
        ours, boto3 = (statistics.median(times[who, way, place, scope]) for who in ("DVC", "boto3"))
        ratio = ours / boto3
        met = "yes" if ratio <= TARGET else "**no**"
        figure = f"{ours:.2f} s, {ratio:.2f} x boto3"
        rows.append([line, "DVC", figure, f"{TARGET} x boto3", met])
        rows.append([line, "boto3", f"{boto3:.2f} s", "", ""])
    return rows


def _prepare(work: Path, bare: Path, paths: list[str], dvc: str) -> list[int]:
    """A DVC project in `work` that tracks copies of `paths`; the same objects as files in `bare`.

    Returns their sizes in bytes.
    """
    subprocess.run(["git", "init", "-q", str(work)], check=True)
    subprocess.run([dvc, "init", "-q"], cwd=work, check=True)
    for path in paths:
        (work / path).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / path).is_dir() else shutil.copy)(ROOT / path, work / path)
    subprocess.run([dvc, "add", "-q", *paths], cwd=work, check=True)

    bare.mkdir()
    cache = work / ".dvc/cache/files/md5"
    objects = [path for path in cache.rglob("*") if path.is_file()]
    names = [str(path.relative_to(cache)) for path in objects]
    for path, name in zip(objects, names, strict=True):
        shutil.copy(path, bare / name.replace("/", "_"))
    (bare / "names.json").write_text(json.dumps(names))
    return [path.stat().st_size for path in objects]


def _delete(folder: Path, paths: list[str]) -> None:
    for path in (folder / name for name in paths):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
