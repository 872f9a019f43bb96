#!/usr/bin/env python
# written by nova.py; edit conf/alone.py
"""alone NAME OPTIONS...: nova-conductor, nova-scheduler or neutron-ovn-maintenance-worker as one process, as nova-compute is.

Upstream's scripts fork it from a master, which has memory of its own and only waits: nova's for a second before, for its threads.
"""

import importlib
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
    while True:
        signal.pause()  # it returns after each signal that somebody has a handler for


sys.argv.pop(0)
if sys.argv[0].startswith("nova-"):
    nova_service(sys.argv[0])
else:
    from neutron.cmd import server

    server.server.boot_server(maintenance_worker)
