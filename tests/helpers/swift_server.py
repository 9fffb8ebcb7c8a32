"""A real S3 server for tests: OpenStack Swift with its s3api, on one machine and in one folder.

    PYTHON_WITH_SWIFT tests/helpers/swift_server.py FOLDER PORT    # until it is terminated; prints `ready` once it serves

One replica, no memcached; the user `test:tester` with key `testing` may use buckets, and a wrong key is refused.
"""

import os
import signal
import sys
import time
import urllib.request
from pathlib import Path

REGION = "eu-test-1"
USER, KEY = "test:tester", "testing"
SWIFT = "[swift-hash]\nswift_hash_path_prefix = a\nswift_hash_path_suffix = b\n[storage-policy:0]\nname = default\ndefault = yes\n"
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


def main(folder: Path, port: int) -> None:
    import pwd

    from swift.common import utils
    from swift.common.ring import RingBuilder
    from swift.common.wsgi import run_wsgi

    (folder / "devices/d1").mkdir(parents=True)
    (folder / "swift.conf").write_text(SWIFT)
    user = pwd.getpwuid(os.getuid()).pw_name
    account, name = USER.split(":")
    words = {
        "folder": folder,
        "user": user,
        "region": REGION,
        "account": account,
        "name": name,
        "key": KEY,
    }
    servers = {"proxy-server": (folder / "proxy.conf", PROXY.format(port=port, **words))}
    for place, kind in enumerate(("account", "container", "object"), start=1):
        builder = RingBuilder(4, 1, 0)
        builder.add_dev(
            {
                "region": 1,
                "zone": 1,
                "ip": "127.0.0.1",
                "port": port + place,
                "device": "d1",
                "weight": 1.0,
            }
        )
        builder.rebalance()
        builder.get_ring().save(str(folder / f"{kind}.ring.gz"))
        servers[f"{kind}-server"] = (
            folder / f"{kind}.conf",
            STORE.format(port=port + place, kind=kind, **words),
        )
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
