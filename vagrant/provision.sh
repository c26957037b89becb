#!/bin/sh
# Makes a node of the topology out of a Debian machine: installs our packages and what the scenarios use, and starts the
# lab's program, now and at every boot. Run again, it installs what was brought and starts the node anew.
#
#   provision.sh PACKAGES NODE SCENE PROFILE NETWORK=MAC...
#
# PACKAGES is a list with commas, or empty. What else is needed was put into /tmp/cyphonic before: the packages,
# cyphonic-lab-node and topology.yaml.
set -eu

from=/tmp/cyphonic
home=/etc/cyphonic-lab
packages=$1
node=$2
scene=$3
profile=$4
shift 4
export DEBIAN_FRONTEND=noninteractive

# What the node's program and the scenarios call. Nothing is fetched where all of it is there: once the node stands, the
# machine reaches nothing but the topology.
needed="iproute2 nftables procps ethtool iputils-ping iperf3 bind9-dnsutils kmod openssh-server systemd-resolved"
missing=
for package in $needed; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q ' installed$' || missing="$missing $package"
done
if [ -n "$missing" ]; then
    apt-get -qq update
    # shellcheck disable=SC2086 # a list of words
    apt-get -qq install --yes --no-install-recommends $missing
fi

# Of this project. A machine's folder keeps what was brought before; without a version in its name, it is replaced.
for package in $(echo "$packages" | tr , ' '); do
    file=$from/$package.deb
    [ -f "$file" ] || { echo "provision: there is no package $package in $from" >&2; exit 1; }
    dpkg --install "$file"
done
install -m 755 "$from/cyphonic-lab-node" /usr/local/bin/cyphonic-lab-node
install -d -m 755 "$home"
install -m 644 "$from/topology.yaml" "$home/topology.yaml"

# The keys that let Vagrant in, for the scenarios: they configure agents and services.
install -d -m 700 /root/.ssh
for keys in /home/vagrant/.ssh/authorized_keys "$from/authorized_keys"; do
    [ ! -f "$keys" ] || install -m 600 "$keys" /root/.ssh/authorized_keys
done

# The cable for management gives neither a way out nor a resolver.
if [ -d /etc/dhcp/dhclient-enter-hooks.d ]; then
    echo 'unset new_routers new_rfc3442_classless_static_routes new_domain_name_servers' \
        > /etc/dhcp/dhclient-enter-hooks.d/cyphonic-lab
fi

printf '%s\n' "$node" > "$home/node"
cat > /etc/systemd/system/cyphonic-lab-node.service <<UNIT
[Unit]
Description=Node $node of Cyphonic's lab, scene $scene, links as in $profile
DefaultDependencies=no
After=local-fs.target systemd-modules-load.service systemd-sysctl.service network.target
Before=systemd-resolved.service cyphonicd.service cyphonic-cloud.service
RequiresMountsFor=/etc /usr/local

[Service]
Type=notify
ExecStart=/usr/local/bin/cyphonic-lab-node up $home/topology.yaml $scene $profile $node resolved:/etc/systemd/resolved.conf.d/cyphonic-lab.conf $*

[Install]
WantedBy=multi-user.target
UNIT
systemctl daemon-reload
systemctl enable --quiet cyphonic-lab-node.service
systemctl restart cyphonic-lab-node.service
systemctl restart systemd-resolved.service
echo "provision: $node stands"
