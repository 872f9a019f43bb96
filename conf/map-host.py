#!/usr/bin/env python
# written by nova.py; edit conf/map-host.py
"""Says beforehand in which cell this machine's compute host is, so that it can be used as soon as nova-compute has reported.

nova-manage can only afterwards, and the scheduler looks for new hosts every ten seconds; both leave alone what is mapped.
"""

import sys

from nova.conf import CONF

from nova import config, context, objects

config.parse_args(sys.argv)
objects.register_all()
admin = context.get_admin_context()
(cell,) = (each for each in objects.CellMappingList.get_all(admin) if not each.is_cell0())
objects.HostMapping(admin, host=CONF.host, cell_mapping=cell).create()
