"""A real S3 server for tests: OpenStack Swift with its s3api, on one machine and in one folder.

    PYTHON_WITH_SWIFT tests/helpers/swift_server.py FOLDER PORT

Prints `ready` once it serves, and serves until it is terminated; it takes four ports from PORT on.
One replica, no memcached. The user `test:tester` with the key `testing` has access to buckets; any
other key is refused.
"""

import os
import signal
import socket
import sys
import time
import urllib.request
from pathlib import Path

REGION = "eu-test-1"
USER, KEY = "test:tester", "testing"
KEYS = {  # environment variables of a client
    "AWS_ACCESS_KEY_ID": USER,
    "AWS_SECRET_ACCESS_KEY": KEY,
    "AWS_EC2_METADATA_DISABLED": "true",
}
SWIFT = """
[swift-hash]
swift_hash_path_prefix = a
swift_hash_path_suffix = b
[storage-policy:0]
name = default
default = yes
"""
STORE = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
log_level = ERROR
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""
PROXY = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {folder}
log_level = ERROR
[pipeline:main]
pipeline = healthcheck cache listing_formats s3api tempauth slo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:1
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:s3api]
use = egg:swift#s3api
location = {region}
s3_acl = false
[filter:tempauth]
use = egg:swift#tempauth
user_{account}_{name} = {key} .admin
[filter:slo]
use = egg:swift#slo
"""


def free_ports(count: int) -> int:
    """The first of `count` consecutive free ports."""
    for _ in range(100):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            first = probe.getsockname()[1]
        servers = []
        try:
            for i in range(count):
                servers.append(socket.create_server(("127.0.0.1", first + i)))
            return first
        except OSError:
            continue
        finally:
            for server in servers:
                server.close()
    raise AssertionError("no free ports")


def main(folder: Path, port: int) -> None:
    import pwd

    from swift.common import utils
    from swift.common.ring import RingBuilder
    from swift.common.wsgi import run_wsgi

    (folder / "devices/d1").mkdir(parents=True)
    (folder / "swift.conf").write_text(SWIFT)
    account, name = USER.split(":")
    settings = {"folder": folder, "user": pwd.getpwuid(os.getuid()).pw_name}
    proxy = {"region": REGION, "account": account, "name": name, "key": KEY}
    servers = {
        "proxy-server": (folder / "proxy.conf", PROXY.format(port=port, **settings, **proxy))
    }
    for offset, kind in enumerate(("account", "container", "object"), start=1):
        device = {"region": 1, "zone": 1, "ip": "127.0.0.1", "port": port + offset}
        builder = RingBuilder(4, 1, 0)
        builder.add_dev(device | {"device": "d1", "weight": 1.0})
        builder.rebalance()
        builder.get_ring().save(str(folder / f"{kind}.ring.gz"))
        text = STORE.format(port=port + offset, kind=kind, **settings)
        servers[f"{kind}-server"] = (folder / f"{kind}.conf", text)

    children = []
    for section, (conf, text) in servers.items():
        conf.write_text(text)
        if not (child := os.fork()):
            utils.set_swift_dir(str(folder))
            sys.exit(run_wsgi(str(conf), section))
        children.append(child)

    def stop(*_) -> None:
        for child in children:
            os.kill(child, signal.SIGTERM)
        sys.exit()

    signal.signal(signal.SIGTERM, stop)
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/healthcheck", timeout=1)
            break
        except OSError:
            time.sleep(0.1)
    print("ready", flush=True)
    signal.pause()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]))
