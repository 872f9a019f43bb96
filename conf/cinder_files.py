# written by nova.py; edit conf/cinder_files.py
"""cinder's NFS driver on a folder of this machine, whose generic ways are made safe.

These ways read and write a volume's file as it is. After a snapshot that file is qcow2, over the files of earlier snapshots.
"""

import binascii
import tempfile
from typing import Any

from castellan import key_manager
from cinder import exception, interface, objects
from cinder.image import image_utils
from cinder.volume import volume_utils
from cinder.volume.drivers import nfs, remotefs
from oslo_utils import units

LUKS_HEADER = 2 * units.Mi  # at most, with QEMU's 8 key slots of 64 bytes


@interface.volumedriver
class FilesDriver(remotefs.RevertToSnapshotMixin, nfs.NfsDriver):  # type: ignore[misc]
    """The NFS driver. Revert is upstream's mixin; the generic way would write raw data over a qcow2 file."""

    def _is_raw(self, volume: Any) -> bool:
        """Is the file that an instance writes to the one that the volume began with?"""
        return bool(self.get_active_image_from_info(volume) == volume.name)

    def _create_encrypted_volume_file(self, path: str, size_gb: int, encryption: Any, context: Any) -> None:
        """A LUKS volume, its header part of its size. nova would not find LUKS in upstream's qcow2, and write over it."""
        cipher = image_utils.decode_cipher(encryption["cipher"], encryption["key_size"])
        options = ",".join(f"{name.replace('_', '-')}={value}" for name, value in cipher.items())
        key = key_manager.API().get(context, encryption["encryption_key_id"]).get_encoded()
        payload = str(size_gb * units.Gi - LUKS_HEADER)
        with tempfile.NamedTemporaryFile(dir=volume_utils.image_conversion_dir()) as file:
            file.write(binascii.hexlify(key))
            file.flush()
            secret = ("--object", f"secret,id=key,file={file.name}", "-o", f"key-secret=key,{options}")
            self._execute("qemu-img", "create", "-f", "luks", *secret, path, payload, run_as_root=True)
        self._execute("truncate", "-s", f"{size_gb}G", path, run_as_root=True)

    def create_cloned_volume(self, volume: Any, src_vref: Any) -> Any:
        """A clone is raw. Upstream notes the format of its source."""
        update = super().create_cloned_volume(volume, src_vref)
        volume.admin_metadata["format"] = "raw"
        with volume.obj_as_admin():
            volume.save()
        return update

    def get_backup_device(self, context: Any, backup: Any) -> tuple[Any, bool]:
        """A backup of a qcow2 file would be one of qcow2 without the files below it: a clone is backed up instead."""
        volume = objects.Volume.get_by_id(context, backup.volume_id)
        if backup.snapshot_id or volume.previous_status == "in-use" or self._is_raw(volume):
            return super().get_backup_device(context, backup)  # type: ignore[no-any-return]
        clone = self._create_temp_cloned_volume(context, volume, status="backing-up")
        backup.temp_volume_id = clone.id
        backup.save()
        return clone, False

    def initialize_connection(self, volume: Any, connector: Any) -> Any:
        """As upstream; but a backup is restored into a raw file only: into a new volume, or one without snapshots."""
        if volume.status == "restoring-backup" and not self._is_raw(volume):
            raise exception.InvalidVolume(reason="it has snapshots: restore the backup into a new volume")
        return super().initialize_connection(volume, connector)

    def terminate_connection(self, volume: Any, connector: Any, **kwargs: Any) -> Any:
        """What was restored is as large as its volume: cinder-backup writes to an empty file, and leaves out what is zero."""
        if volume.status == "restoring-backup":
            self._execute("truncate", "-s", f"{volume.size}G", self.local_path(volume), run_as_root=True)
        return super().terminate_connection(volume, connector, **kwargs)
