# SPDX-License-Identifier: Apache-2.0
"""The life of objects: by S3 with boto3, by swift's own API with openstack; who may not; what is left."""

import hashlib
import io
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError

from .conftest import Machine, eventually, on

pytestmark = on("vlan")

MIB = 1 << 20
STORE = 36200


def client(cloud: Machine, access: str, secret: str) -> Any:
    """A client of S3 with these keys, where novarc says it is."""
    return boto3.client("s3", endpoint_url=cloud.shell("echo $S3_URL"), aws_access_key_id=access, aws_secret_access_key=secret)


@pytest.fixture(scope="module")
def s3(cloud: Machine) -> Any:
    """The client of novarc's user."""
    return client(cloud, *cloud.shell("echo $EC2_ACCESS_KEY $EC2_SECRET_KEY").split())


@pytest.fixture
def bucket(s3: Any, request: pytest.FixtureRequest) -> Iterator[str]:
    """A bucket for one test."""
    name = str(request.node.originalname).removeprefix("test_").replace("_", "-")[:40].strip("-")
    s3.create_bucket(Bucket=name)
    yield name
    for found in s3.list_object_versions(Bucket=name).get("Versions", []):
        s3.delete_object(Bucket=name, Key=found["Key"], VersionId=found["VersionId"])
    s3.delete_bucket(Bucket=name)
    assert name not in buckets(s3)


def buckets(s3: Any) -> list[str]:
    return [each["Name"] for each in s3.list_buckets()["Buckets"]]


def keys(s3: Any, bucket: str, **more: str) -> list[str]:
    return [each["Key"] for each in s3.list_objects_v2(Bucket=bucket, **more).get("Contents", [])]


def content(s3: Any, bucket: str, key: str, **more: str) -> bytes:
    return bytes(s3.get_object(Bucket=bucket, Key=key, **more)["Body"].read())


def refused(code: str, call: Any, *arguments: Any, **options: Any) -> None:
    """S3 says no, with this code."""
    with pytest.raises(ClientError) as caught:
        call(*arguments, **options)
    assert caught.value.response["Error"]["Code"] == code


def store(cloud: Machine) -> psutil.Process:
    """The process behind the proxy."""
    programs = [each for each in psutil.process_iter(["cmdline", "name"]) if "python" in (each.info["name"] or "")]
    those = [each for each in programs if any(word.endswith("/swift_store.py") for word in each.info["cmdline"] or [])]
    ours = f"{cloud.folder}/nova /run/nova.py "
    return next(each for each in those if ours in Path(f"/proc/{each.pid}/mountinfo").read_text())


def used(cloud: Machine) -> int:
    """The bytes that objects take on the disk."""
    files = (path for path in (cloud.folder / "nova/state/swift").rglob("*") if path.is_file())
    return sum(path.stat().st_blocks * 512 for path in files)


# ---- S3 ----


def test_objects_are_put_listed_got_copied_and_deleted(s3: Any, bucket: str) -> None:
    assert bucket in buckets(s3)
    for key in ("a/1", "a/2", "b", "a name, with spaces/and ümlauts"):
        s3.put_object(Bucket=bucket, Key=key, Body=key.encode(), Metadata={"from": "here"}, ContentType="text/x-mine")
    assert keys(s3, bucket) == ["a name, with spaces/and ümlauts", "a/1", "a/2", "b"]
    assert keys(s3, bucket, Prefix="a/") == ["a/1", "a/2"]
    head = s3.head_object(Bucket=bucket, Key="a/1")
    assert (head["ContentType"], head["Metadata"], head["ContentLength"]) == ("text/x-mine", {"from": "here"}, 3)
    s3.copy_object(Bucket=bucket, Key="c", CopySource=f"{bucket}/a/2")
    assert [content(s3, bucket, key) for key in ("a/1", "c")] == [b"a/1", b"a/2"]
    assert content(s3, bucket, "a/1", Range="bytes=1-1") == b"/"
    refused("BucketNotEmpty", s3.delete_bucket, Bucket=bucket)
    s3.delete_object(Bucket=bucket, Key="b")
    refused("NoSuchKey", content, s3, bucket, "b")
    said = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in keys(s3, bucket)]})
    assert "Errors" not in said
    assert keys(s3, bucket) == []


def test_100_mb_in_parts_come_back_byte_by_byte_and_leave_nothing(cloud: Machine, s3: Any, bucket: str) -> None:
    before, data, back = used(cloud), os.urandom(100 * MIB), io.BytesIO()
    parts = TransferConfig(multipart_threshold=8 * MIB, multipart_chunksize=8 * MIB)
    s3.upload_fileobj(io.BytesIO(data), bucket, "large", Config=parts)
    head = s3.head_object(Bucket=bucket, Key="large")
    assert (head["ContentLength"], head["ETag"].strip('"').partition("-")[2]) == (len(data), "13")
    s3.download_fileobj(bucket, "large", back)
    assert hashlib.sha256(back.getvalue()).hexdigest() == hashlib.sha256(data).hexdigest()
    assert content(s3, bucket, "large", Range="bytes=8388600-8388615") == data[8388600:8388616]  # across two parts
    assert used(cloud) - before > 100 * MIB
    s3.delete_object(Bucket=bucket, Key="large")
    assert cloud.openstack(f"object list {bucket}+segments") == []
    assert used(cloud) - before < MIB
    cloud.shell(f"openstack container delete {bucket}+segments")


def test_a_bucket_keeps_versions_where_it_is_asked_to(s3: Any, bucket: str) -> None:
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    first, second = (s3.put_object(Bucket=bucket, Key="it", Body=body)["VersionId"] for body in (b"first", b"second"))
    assert content(s3, bucket, "it") == b"second"
    assert content(s3, bucket, "it", VersionId=first) == b"first"
    marker = s3.delete_object(Bucket=bucket, Key="it")
    assert marker["DeleteMarker"] is True
    refused("NoSuchKey", content, s3, bucket, "it")
    s3.delete_object(Bucket=bucket, Key="it", VersionId=marker["VersionId"])
    assert content(s3, bucket, "it") == b"second"
    assert {each["VersionId"] for each in s3.list_object_versions(Bucket=bucket)["Versions"]} == {first, second}


def test_a_signed_url_needs_no_keys_and_a_changed_one_is_refused(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="it", Body=b"for you")
    url = s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "it"}, ExpiresIn=60)
    assert urllib.request.urlopen(url, timeout=30).read() == b"for you"
    for other, code in ((url.replace("/it?", "/other?"), 403), (url.partition("?")[0], 400)):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(other, timeout=30)
        assert caught.value.code == code


# ---- swift's own API ----


def test_swifts_own_api_has_the_same_objects(cloud: Machine, s3: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("by swift")
    cloud.shell("openstack container create box")
    cloud.shell(f"openstack object create box {tmp_path}/file --name folder/file")
    assert cloud.openstack("object list box") == [{"Name": "folder/file"}]
    assert cloud.shell("openstack object save box folder/file --file -") == "by swift"
    assert content(s3, "box", "folder/file") == b"by swift"
    s3.put_object(Bucket="box", Key="more", Body=b"by S3")
    assert cloud.shell("openstack object save box more --file -") == "by S3"

    known = {"Name": "box", "Count": 2, "Bytes": 13}
    eventually("what the account knows of its containers", lambda: known in cloud.openstack("container list --long"))
    cloud.shell("openstack container delete --recursive box")
    assert "box" not in buckets(s3)


# ---- Who may not ----


def test_wrong_keys_are_refused(cloud: Machine, s3: Any, bucket: str) -> None:
    access, secret = cloud.shell("echo $EC2_ACCESS_KEY $EC2_SECRET_KEY").split()
    refused("SignatureDoesNotMatch", client(cloud, access, secret + "x").list_buckets)
    refused("SignatureDoesNotMatch", client(cloud, access + "x", secret).list_buckets)


def test_a_member_of_another_project_has_buckets_of_its_own(cloud: Machine, s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="it", Body=b"admin's")
    cloud.shell("openstack project create s3-others && openstack user create s3-other --project s3-others")
    cloud.shell("openstack role add --project s3-others --user s3-other member")
    made = cloud.openstack("ec2 credentials create --project s3-others --user s3-other")
    other = client(cloud, made["access"], made["secret"])
    assert buckets(other) == []
    refused("NoSuchBucket", content, other, bucket, "it")  # every project has names of its own
    other.create_bucket(Bucket="theirs")
    assert buckets(other) == ["theirs"]
    assert "theirs" not in buckets(s3)
    other.delete_bucket(Bucket="theirs")
    cloud.shell("openstack user delete s3-other && openstack project delete s3-others")
    refused("SignatureDoesNotMatch", other.list_buckets)


def test_nobody_else_of_this_machine_reaches_what_is_behind_the_proxy(cloud: Machine) -> None:
    assert {c.laddr.ip for c in store(cloud).net_connections() if c.status == psutil.CONN_LISTEN} == {"127.0.0.1"}
    line = f"import socket; socket.create_connection(('127.0.0.1', {STORE}), 5)"
    as_nobody = ["setpriv", "--reuid=nobody", "--clear-groups", "/usr/bin/python3", "-c", line]
    subprocess.run([sys.executable, "-c", line], check=True, capture_output=True)
    done = subprocess.run(as_nobody, check=False, capture_output=True, text=True)
    assert "ConnectionRefusedError" in done.stderr


def test_a_file_system_that_cannot_hold_objects_is_refused(cloud: Machine) -> None:
    place = cloud.folder / "ram"
    place.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "ramfs", str(place)], check=True)
    try:
        said = cloud.nova("install", "ram/other", ok=2, env={"USE_SWIFT": "1"})
        assert f"USE_SWIFT=1: swift needs a file system with extended attributes, and {place} is on one without" in said
        assert list(place.iterdir()) == []
    finally:
        subprocess.run(["umount", str(place)], check=True)
        place.rmdir()


# ---- Its processes ----


def test_objects_outlive_the_process_that_keeps_them(cloud: Machine, s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="it", Body=b"still here")
    old = store(cloud)
    old.terminate()
    eventually("its end", lambda: not old.is_running() or old.status() == psutil.STATUS_ZOMBIE)

    def here_again() -> bool:
        try:
            return content(s3, bucket, "it") == b"still here"
        except ClientError:
            return False

    eventually("the object", here_again)
    windows = {each["window"]: each for each in json.loads(cloud.nova("status", "--json"))["windows"]}
    assert windows["objects"]["running_since"] and windows["objectstore"]["running_since"]
