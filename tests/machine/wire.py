"""wire.py INTERFACE [TAG FROM TO]: the ARP requests and replies that come by, one "TAG SENDER-ADDRESS" a line, for 3 s.

With TAG, FROM and TO it asks first, on that VLAN and from that address, who has TO. Run in a network namespace.
"""

import socket
import struct
import sys
import time

interface, *question = sys.argv[1:]
AUXDATA, VLAN_VALID = 8, 0x10  # linux/if_packet.h: a kernel that takes the tag off tells it beside the frame

wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
wire.bind((interface, 0))
wire.setsockopt(263, AUXDATA, 1)  # SOL_PACKET
wire.settimeout(0.2)
if question:
    tag, asker, wanted = int(question[0]), *map(socket.inet_aton, question[1:])
    mac = wire.getsockname()[4]
    frame = b"\xff" * 6 + mac + struct.pack("!HHH", 0x8100, tag, 0x0806)
    wire.send(frame + struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + asker + bytes(6) + wanted)

end = time.monotonic() + 3
while time.monotonic() < end:
    try:
        frame, beside, _, (_, _, kind, _, _) = wire.recvmsg(2048, 1024)
    except TimeoutError:
        continue
    if kind == socket.PACKET_OUTGOING:
        continue
    tag, rest = 0, frame[12:]
    for _, name, data in beside:
        if name == AUXDATA and struct.unpack("=I", data[:4])[0] & VLAN_VALID:
            tag = struct.unpack("=H", data[16:18])[0] & 0xFFF
    if rest[:2] == b"\x81\x00":
        tag, rest = struct.unpack("!H", rest[2:4])[0] & 0xFFF, rest[4:]
    if rest[:2] == b"\x08\x06":
        print(tag, socket.inet_ntoa(rest[16:20]), flush=True)
