# written by nova.py; edit conf/lost-builds.py
"""Instances that were being built when a service died, and that nobody builds any more, are in ERROR and say why.

A service takes its message from the queue before it acts, so what it is at is lost with it. nova-compute finds what it was
building when it starts again, but tells no reason; what no host had taken yet nobody looks for. conf/again.tmpl calls this,
with what keep noted of each death as standard input.
"""

import os
import sys
import traceback
from pathlib import Path

os.environ["OS_NOVA_DISABLE_EVENTLET_PATCHING"] = "True"  # as the services run: with native threads

from nova.compute import utils, vm_states
from nova.conductor.manager import ComputeTaskManager
from oslo_utils import timeutils

from nova import config, context, exception, objects

HERE = Path(__file__).parent
SECONDS = 90  # longer than anybody waits for an answer: rpc_response_timeout
DEATHS = sorted(sys.stdin.read().splitlines())


def deaths(asked):
    """Which services have died since an instance was asked for."""
    since = asked.astimezone().strftime("%FT%T")
    return [line for line in DEATHS if line[:19] >= since]


def reason(asked):
    """What the instance says of itself."""
    return exception.NovaException(f"a service died while this instance was being built: {'; '.join(deaths(asked)[:2])}")


def old(thing):
    """Was it asked for so long ago that nobody is at it any more?"""
    return timeutils.is_older_than(thing.created_at, SECONDS) and deaths(thing.created_at)


def lost(instance):
    """Taken by no host; or by one that died."""
    if instance.vm_state == vm_states.BUILDING:
        return not instance.host
    return not instance.launched_at and not objects.InstanceFaultList.get_by_instance_uuids(instance._context, [instance.uuid])


def bury(manager, admin, request):
    """A request that has become no instance becomes one that never was on a host."""
    spec = objects.RequestSpec.get_by_instance_uuid(admin, request.instance_uuid)
    manager._bury_in_cell0(admin, spec, reason(request.created_at), build_requests=[request])
    manager.report_client.delete_allocation_for_instance(admin, request.instance_uuid, force=True)
    print(f"{request.instance_uuid}: {reason(request.created_at)}")


def settle(admin, cell, instance, request):
    """The conductor died between making an instance and saying so."""
    mapping = objects.InstanceMapping.get_by_instance_uuid(admin, instance.uuid)
    mapping.cell_mapping = cell
    mapping.save()
    request.destroy()


def give_up(manager, admin, instance):
    """An instance that nobody builds is in ERROR."""
    instance.vm_state, instance.task_state = vm_states.ERROR, None
    instance.save()
    utils.add_instance_fault_from_exc(instance._context, instance, reason(instance.created_at))
    manager.report_client.delete_allocation_for_instance(admin, instance.uuid, force=True)
    print(f"{instance.uuid}: {reason(instance.created_at)}")


def attempt(function, *arguments):
    """One that cannot be helped does not keep the others waiting."""
    try:
        function(*arguments)
    except Exception:
        traceback.print_exc()


def main():
    files = (argument for name in ("nova.conf", "nova-db.conf") for argument in ("--config-file", str(HERE / name)))
    config.parse_args(["lost-builds", *files])
    objects.register_all()
    admin, manager = context.get_admin_context(), ComputeTaskManager()
    requests = {each.instance_uuid: each for each in objects.BuildRequestList.get_all(admin) if old(each)}
    for cell in objects.CellMappingList.get_all(admin):
        if cell.is_cell0():
            continue
        with context.target_cell(admin, cell) as inside:
            states = {"deleted": False, "vm_state": [vm_states.BUILDING, vm_states.ERROR]}
            for instance in objects.InstanceList.get_by_filters(inside, states):
                if old(instance) and lost(instance):
                    if request := requests.pop(instance.uuid, None):
                        attempt(settle, admin, cell, instance, request)
                    attempt(give_up, manager, admin, instance)
    for request in requests.values():
        attempt(bury, manager, admin, request)


main()
