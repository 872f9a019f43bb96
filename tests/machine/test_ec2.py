# SPDX-License-Identifier: Apache-2.0
"""The EC2 API as boto3 sees it: a key, an instance, its address, its volume; a VPC; who is not let in."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from .conftest import Machine, eventually, on

pytestmark = on("vlan")


def client(cloud: Machine, before: str = "") -> Any:
    """A client with what novarc exports, and something before its secret."""
    words = cloud.shell(f"echo $EC2_URL $OS_REGION_NAME $EC2_ACCESS_KEY {before}$EC2_SECRET_KEY").split()
    names = ("endpoint_url", "region_name", "aws_access_key_id", "aws_secret_access_key")
    return boto3.client("ec2", **dict(zip(names, words, strict=True)))


@dataclass
class Instance:
    """One that EC2's API has made, and a machine that has its key."""

    ec2: Any
    id: str
    owner: Machine

    def told(self) -> Any:
        """What the API tells of it."""
        ((found,),) = [each["Instances"] for each in self.ec2.describe_instances(InstanceIds=[self.id])["Reservations"]]
        return found

    def wait(self) -> None:
        """Until it runs."""
        eventually("the instance runs", lambda: self.told()["State"]["Name"] == "running", 120)


def run(cloud: Machine, ec2: Any, key: str, **more: Any) -> Instance:
    """An instance of ami-tty with a key of its own, made by EC2."""
    owner = Machine(cloud.folder)
    owner.key = cloud.folder / key
    owner.key.touch(mode=0o600)
    owner.key.write_text(ec2.create_key_pair(KeyName=key)["KeyMaterial"])
    (image,) = ec2.describe_images(Filters=[{"Name": "name", "Values": ["ami-tty"]}])["Images"]
    which = dict(ImageId=image["ImageId"], InstanceType="m1.tiny", KeyName=key, MinCount=1, MaxCount=1)
    made = Instance(ec2, ec2.run_instances(**which, **more)["Instances"][0]["InstanceId"], owner)
    made.wait()
    return made


@pytest.fixture(scope="module")
def ec2(cloud: Machine) -> Any:
    """The user admin's client."""
    return client(cloud)


@pytest.fixture(scope="module")
def instance(cloud: Machine, ec2: Any) -> Iterator[Instance]:
    """One on `private`; at the end it is terminated, and gone for EC2 and for nova."""
    made = run(cloud, ec2, "ec2-key")
    yield made
    (known,) = servers(cloud, made)
    ec2.delete_key_pair(KeyName="ec2-key")
    ec2.terminate_instances(InstanceIds=[made.id])
    eventually("its end for EC2", lambda: made.id not in [each["InstanceId"] for each in instances(ec2)])
    eventually("its end for nova", lambda: known["ID"] not in [each["ID"] for each in cloud.openstack("server list")])


def servers(cloud: Machine, instance: Instance) -> list[Any]:
    """What nova has with the instance's address on `private`; its name is no help: ec2-api changes it while nova builds."""
    address = instance.told()["PrivateIpAddress"]
    return [each for each in cloud.openstack("server list") if address in each["Networks"].get("private", [])]


def test_what_there_is_to_run(cloud: Machine, ec2: Any) -> None:
    (image,) = ec2.describe_images(Filters=[{"Name": "name", "Values": ["ami-tty"]}])["Images"]
    assert [image[name][:4] for name in ("ImageId", "KernelId", "RamdiskId")] == ["ami-", "aki-", "ari-"]
    assert image["OwnerId"] == cloud.openstack("project show admin")["id"]
    (region,) = ec2.describe_regions()["Regions"]
    assert (region["RegionName"], region["Endpoint"]) == tuple(cloud.shell("echo $OS_REGION_NAME $EC2_URL").split())


def test_an_address_leads_to_the_instance(cloud: Machine, ec2: Any, instance: Instance) -> None:
    address = ec2.allocate_address()["PublicIp"]
    ec2.associate_address(InstanceId=instance.id, PublicIp=address)
    (told,) = ec2.describe_addresses(PublicIps=[address])["Addresses"]
    assert told["InstanceId"] == instance.id
    name = instance.told()["PrivateDnsName"]
    eventually("ssh with the key that EC2 made", lambda: instance.owner.ssh(address, "hostname") == name, 120)
    # nova's metadata service is EC2's, as it always was.
    # It repeats for 15 s what it has said, and the instance may have asked before it had the address.
    line = "wget -qO- http://169.254.169.254/latest/meta-data/public-ipv4"
    eventually("the address in the metadata", lambda: instance.owner.ssh(address, line) == address, 30)
    assert instance.told()["PublicIpAddress"] == address
    assert [server["Image"] for server in servers(cloud, instance)] == ["ami-tty"]


def test_a_volume_is_the_instances_second_disk(ec2: Any, instance: Instance) -> None:
    volume = ec2.create_volume(Size=1, AvailabilityZone="nova")["VolumeId"]

    def becomes(state: str) -> None:
        eventually(f"the volume is {state}", lambda: ec2.describe_volumes(VolumeIds=[volume])["Volumes"][0]["State"] == state)

    becomes("available")
    ec2.attach_volume(VolumeId=volume, InstanceId=instance.id, Device="/dev/vdb")
    becomes("in-use")
    address = instance.told()["PublicIpAddress"]
    size = "cat /sys/block/vdb/size 2>/dev/null || echo 0"
    eventually("the disk in the instance", lambda: instance.owner.ssh(address, size) == str(1024 * 2048))
    (mapped,) = instance.told()["BlockDeviceMappings"]
    assert (mapped["DeviceName"], mapped["Ebs"]["VolumeId"]) == ("/dev/vdb", volume)
    ec2.detach_volume(VolumeId=volume)
    becomes("available")
    ec2.delete_volume(VolumeId=volume)
    eventually("the volume's end", lambda: volume not in [each["VolumeId"] for each in ec2.describe_volumes()["Volumes"]])


def test_the_address_is_given_back(cloud: Machine, ec2: Any, instance: Instance) -> None:
    address = instance.told()["PublicIpAddress"]
    ec2.disassociate_address(PublicIp=address)
    assert "PublicIpAddress" not in instance.told()
    ec2.release_address(PublicIp=address)
    assert address not in [each["Floating IP Address"] for each in cloud.openstack("floating ip list")]


@pytest.mark.slow
def test_a_vpc_of_ones_own(cloud: Machine, ec2: Any) -> None:
    vpc = ec2.create_vpc(CidrBlock="10.31.0.0/16")["Vpc"]["VpcId"]
    gateway = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
    (table,) = ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["RouteTables"]
    # Before the subnet: ec2-api takes the gateway from a subnet without this route, and neutron does not let it any more.
    ec2.create_route(RouteTableId=table["RouteTableId"], DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway)
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.31.1.0/24")["Subnet"]["SubnetId"]
    group = ec2.create_security_group(GroupName="ssh", Description="ssh comes in", VpcId=vpc)["GroupId"]
    ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[ssh])
    made = run(cloud, ec2, "vpc-key", SubnetId=subnet, SecurityGroupIds=[group])
    address = ec2.allocate_address(Domain="vpc")
    own = ec2.associate_address(InstanceId=made.id, AllocationId=address["AllocationId"])["AssociationId"]
    name, fixed = made.told()["PrivateDnsName"], made.told()["PrivateIpAddress"]
    assert fixed.startswith("10.31.1.")
    eventually("ssh into the VPC", lambda: made.owner.ssh(address["PublicIp"], "hostname") == name, 120)
    ec2.disassociate_address(AssociationId=own)
    ec2.release_address(AllocationId=address["AllocationId"])
    ec2.delete_key_pair(KeyName="vpc-key")
    ec2.terminate_instances(InstanceIds=[made.id])
    eventually("its end", lambda: made.id not in [each["InstanceId"] for each in instances(ec2)])
    ec2.delete_security_group(GroupId=group)
    ec2.delete_subnet(SubnetId=subnet)
    ec2.detach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
    ec2.delete_internet_gateway(InternetGatewayId=gateway)
    ec2.delete_vpc(VpcId=vpc)
    assert [each["Name"] for each in cloud.openstack("router list")] == ["router"]


def instances(ec2: Any) -> list[Any]:
    """Every instance that EC2 tells of."""
    return [each for row in ec2.describe_instances()["Reservations"] for each in row["Instances"]]


def test_a_wrong_secret_is_not_let_in(cloud: Machine) -> None:
    with pytest.raises(ClientError) as caught:
        client(cloud, "wrong-").describe_instances()
    assert caught.value.response["Error"]["Code"] == "AuthFailure"
