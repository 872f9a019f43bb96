#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Run a guest by /dev/kvm's own calls: "it ran", or why not. Where KVM does not work this may never end: give it a time.

A device that can be opened and a guest of a few instructions prove nothing: where the machine is a guest itself, of a host
that does not hand virtualization on, KVM may interpret each instruction. So this guest is a processor in 64-bit mode, as
kernels use it, and counts to 2**28. A processor does that in a tenth of a second; such a KVM would need half an hour for it,
and never gets a kernel unpacked.
"""

import ctypes
import fcntl
import mmap
import os
import struct
import sys

# linux/kvm.h, for x86
CREATE_VM, CREATE_VCPU, RUN, VCPU_MMAP_SIZE, SET_TSS_ADDR = 0xAE01, 0xAE41, 0xAE80, 0xAE04, 0xAE47
SET_USER_MEMORY_REGION, GET_SREGS, SET_SREGS, SET_REGS = 0x4020AE46, 0x8138AE83, 0x4138AE84, 0x4090AE82
EXIT_HLT = 5

PML4, PDPT, PAGES, CODE, SIZE = 0x0000, 0x1000, 0x2000, 0x3000, 0x4000
GUEST = b"\xb9\x00\x00\x00\x10\xff\xc9\x75\xfc\xf4"  # mov ecx, 1 << 28; again: dec ecx; jnz again; hlt


def segment(kind: int, is_code: bool) -> bytes:
    """struct kvm_segment: all memory, for the kernel."""
    return struct.pack("<QIH10B", 0, 0xFFFFFFFF, 8, kind, 1, 0, not is_code, 1, is_code, 1, 0, 0, 0)


def main() -> None:
    kvm = os.open("/dev/kvm", os.O_RDWR)
    machine = fcntl.ioctl(kvm, CREATE_VM, 0)
    fcntl.ioctl(machine, SET_TSS_ADDR, 0x7FFFD000)  # three pages that the guest does not use
    memory = mmap.mmap(-1, SIZE)
    struct.pack_into("<Q", memory, PML4, PDPT | 3)  # present, writable
    struct.pack_into("<Q", memory, PDPT, PAGES | 3)
    struct.pack_into("<Q", memory, PAGES, 0 | 0x83)  # 2 MiB, as they are
    memory[CODE : CODE + len(GUEST)] = GUEST
    place = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    fcntl.ioctl(machine, SET_USER_MEMORY_REGION, struct.pack("<IIQQQ", 0, 0, 0, SIZE, place))
    cpu = fcntl.ioctl(machine, CREATE_VCPU, 0)
    run = mmap.mmap(cpu, fcntl.ioctl(kvm, VCPU_MMAP_SIZE, 0))

    state = bytearray(312)  # struct kvm_sregs: cs, ds, es, fs, gs, ss; at 224 cr0, cr2, cr3, cr4, cr8, efer
    fcntl.ioctl(cpu, GET_SREGS, state)
    state[: 6 * 24] = segment(11, True) + 5 * segment(3, False)
    struct.pack_into("<6Q", state, 224, 0x80000011, 0, PML4, 0x20, 0, 0x500)  # paging and protection; PAE; long mode
    fcntl.ioctl(cpu, SET_SREGS, bytes(state))
    fcntl.ioctl(cpu, SET_REGS, struct.pack("<18Q", *16 * [0], CODE, 2))
    fcntl.ioctl(cpu, RUN, 0)
    reason = struct.unpack_from("<I", run, 8)[0]
    print("it ran" if reason == EXIT_HLT else f"a guest stops for the reason {reason} of linux/kvm.h")


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        print(error)
        sys.exit(1)
