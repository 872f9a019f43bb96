"""IMAGE: a qcow2 behind a URL is in the cloud in its format and boots; what is no image is refused before anything is made."""

from __future__ import annotations

import hashlib
import subprocess

import pytest

from .conftest import Machine, eventually, on

pytestmark = on("flat")


def test_it_is_added_in_its_format_under_its_files_name(cloud: Machine) -> None:
    image = cloud.openstack("image show tty-of-mine")
    assert (image["disk_format"], image["container_format"], image["visibility"]) == ("qcow2", "bare", "public")
    content = (cloud.folder / "served/tty-of-mine.qcow2").read_bytes()
    assert image["size"] == len(content)
    assert image["properties"]["os_hash_value"] == hashlib.sha512(content).hexdigest()


def test_an_instance_boots_from_it(cloud: Machine) -> None:
    """It is a root disk without a boot loader, so kernel and ramdisk are ami-tty's, as properties."""
    parts = {name: cloud.openstack(f"image show ami-tty-{name}")["id"] for name in ("kernel", "ramdisk")}
    command = cloud.openstack("image show ami-tty")["properties"]["os_command_line"]
    properties = [f"--property {name}_id={id}" for name, id in parts.items()]
    cloud.shell(f"openstack image set {' '.join(properties)} --property os_command_line='{command}' tty-of-mine")
    cloud.shell("openstack server create --image tty-of-mine --flavor m1.tiny --network private --wait from-mine")
    eventually("its login", lambda: " login:" in cloud.shell("openstack console log show from-mine"), 120)
    cloud.shell("openstack server delete --wait from-mine")


def test_what_is_no_image_is_refused_before_anything_is_made(cloud: Machine) -> None:
    served, refused = cloud.folder / "served", cloud.folder / "refused"
    refused.mkdir()
    make = ["qemu-img", "create", "-q", "-f", "qcow2"]
    layer, split = str(refused / "layer.img"), str(refused / "split.img")
    subprocess.run([*make, "-F", "qcow2", "-b", str(served / "tty-of-mine.qcow2"), layer], check=True)
    subprocess.run([*make, "-o", f"data_file={refused}/data.raw", split, "1M"], check=True)
    (refused / "empty.img").touch()
    (refused / "text.img").write_text("no disk\n" * 1001)
    reasons = {
        "layer": "has a backing file",
        "split": "has data_file set",
        "empty": "neither qcow2 nor",
        "text": "neither qcow2 nor",
    }
    for name, why in {**reasons, "none": "No such file"}.items():
        said = cloud.nova("run_detached", "two", ok=2, env={"IMAGE": f"refused/{name}.img", "SCREEN_NAME": "two"})
        assert f"IMAGE=refused/{name}.img: " in said and why in said
    assert not (cloud.folder / "two").exists()


@pytest.mark.parametrize("options", [["-f", "qcow2", "-o", "compat=0.10"], ["-f", "qcow2"]])
def test_what_qemu_img_makes_is_taken(cloud: Machine, options: list[str]) -> None:
    """It gets as far as the ports, which this cloud has."""
    image = cloud.folder / "good.qcow2"
    subprocess.run(["qemu-img", "create", "-q", *options, str(image), "3G"], check=True)
    assert "port 5000 is in use" in cloud.nova("run_detached", "two", ok=1, env={"IMAGE": str(image), "SCREEN_NAME": "two"})
