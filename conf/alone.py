#!/usr/bin/env python
# written by nova.py; edit conf/alone.py
"""alone NAME OPTIONS...: nova-conductor, nova-scheduler or neutron-ovn-maintenance-worker as one process, as nova-compute is.

Upstream's scripts fork it from a master, which has memory of its own and only waits: nova's for a second before, for its threads.
"""

import importlib
import os
import signal
import sys
from typing import Any


def nova_service(binary: str) -> None:
    """What main() of nova.cmd.conductor and of nova.cmd.scheduler does, but for no_fork, which is nova.cmd.compute's."""
    topic = binary.removeprefix("nova-")
    importlib.import_module(f"nova.cmd.{topic}")  # first of all: it settles how nova's threads are made
    from nova.conf import CONF
    from oslo_log import log
    from oslo_reports import guru_meditation_report, opts

    from nova import config, objects, service, version

    config.parse_args(sys.argv)
    log.setup(CONF, "nova")
    objects.register_all()
    opts.set_defaults(CONF)
    objects.Service.enable_min_version_cache()
    guru_meditation_report.TextGuruMeditation.setup_autorun(version, conf=CONF)
    service.serve(service.Service.create(binary=binary, topic=topic), workers=1, no_fork=True)


def maintenance_worker() -> None:
    """What neutron.server.ovn_maintenance does, but for the fork; that worker's threads need nobody to wait for them."""
    from neutron import manager
    from neutron.api import extensions
    from neutron.plugins.ml2.drivers.ovn.mech_driver.ovsdb.worker import MaintenanceWorker
    from neutron_lib.api import attributes
    from neutron_lib.plugins import directory

    manager.init()
    extensions.PluginAwareExtensionManager.get_instance().extend_resources("2.0", attributes.RESOURCES)
    workers: list[Any] = directory.get_plugin().get_workers()
    next(worker for worker in workers if isinstance(worker, MaintenanceWorker)).start()
    if not os.path.exists("/sys/module/openvswitch"):
        pass_segments(directory.get_plugin().mechanism_manager.mech_drivers["ovn"].obj.nb_ovn)
    while True:
        signal.pause()  # it returns after each signal that somebody has a handler for


def pass_segments(northbound: Any) -> None:
    """Let TCP leave and enter each router whatever its packets' length, now and as soon as there is another router.

    neutron has OVN drop what is longer than the networks' MTU (gateway_mtu). Open vSwitch in userspace does so with packets
    that the guest or this machine left to be segmented later (TSO), up to 64 KiB each, which the kernel's knows to tell
    apart: only what is sent again arrives, by 1.5 Mbit/s and less. TCP's two ends agree on how long a segment may be.
    """
    from ovsdbapp.backend.ovs_idl import event

    table, options = "Logical_Router_Port", {"gateway_mtu_bypass": "tcp"}

    def is_limited(row: Any) -> bool:
        return "gateway_mtu" in row.options and "gateway_mtu_bypass" not in row.options

    class RouterPort(event.RowEvent):  # type: ignore[misc]
        def match_fn(self, event: str, row: Any, old: Any) -> bool:
            return is_limited(row)

        def run(self, event: str, row: Any, old: Any) -> None:
            northbound.db_set(table, row.name, ("options", options), if_exists=True).execute()

    changed = RouterPort((RouterPort.ROW_CREATE, RouterPort.ROW_UPDATE), table, None)
    northbound.ovsdb_connection.idl.notify_handler.watch_event(changed)
    for row in filter(is_limited, list(northbound.tables[table].rows.values())):
        changed.run("", row, None)


sys.argv.pop(0)
if sys.argv[0].startswith("nova-"):
    nova_service(sys.argv[0])
else:
    from neutron.cmd import server

    server.server.boot_server(maintenance_worker)
