# written by nova.py; edit conf/swift_store.py
"""swift's account, container and object servers, and what keeps the accounts' totals, in one process instead of four.

Each server has a device of its own, and every path begins with a device, so one port serves all three.
"""

from pathlib import Path

from swift.common.concurrency import sleep, spawn
from swift.common.ring import RingBuilder
from swift.container.updater import ContainerUpdater
from swift.obj.server import main

SERVERS = ("account", "container", "object")


def by_device(loader, global_conf, **_):
    """For conf/swift-store.conf.tmpl: an application that hands each request to the server of its device.

    Paste's urlmap would do, but for swift's loader, which gives it the name of its own section as one more path.
    """
    make_devices(global_conf)
    servers = {name: loader.get_app(f"{name}-server", global_conf=global_conf) for name in SERVERS}
    spawn(update_accounts, ContainerUpdater({**global_conf, "log_level": "WARNING"}))
    return lambda environ, start_response: servers[environ["PATH_INFO"].split("/")[1]](environ, start_response)


def make_devices(conf):
    """For each server a device, and a ring that says where that is: of one partition, which is there once."""
    for name in SERVERS:
        Path(conf["devices"], name).mkdir(parents=True, exist_ok=True)
        builder = RingBuilder(part_power=0, replicas=1, min_part_hours=0)
        builder.add_dev(dict(id=0, region=1, zone=1, ip=conf["bind_ip"], port=int(conf["bind_port"]), device=name, weight=1))
        builder.rebalance()
        builder.get_ring().save(f"{conf['swift_dir']}/{name}.ring.gz")


def update_accounts(updater):
    """An account's totals are what its containers had a moment ago."""
    while True:
        sleep(5)
        updater.run_once()


if __name__ == "__main__":
    main()
