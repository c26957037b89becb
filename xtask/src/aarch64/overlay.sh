# An overlay of five machines in network namespaces, in a guest that has busybox and iproute2. Lines that begin with @ are read
# by aarch64/overlay.rs; the rest is for people. NOW is set before this runs.
#
#      cloud        trs          a            b           d
#    (v4, v6)    (v4, v6)      (v4)         (v4)        (v6)
#        |            |          |            |           |
#        +------------+---- br0 -+------------+-----------+
#
# a and b have IPv4 and meet directly; d has IPv6 alone, so a reaches it through the relay.
date -s "@$NOW" >/dev/null
ZONE=pi.internal
P=/programs

# Busybox has one of its own, which knows no namespaces, and prefers it.
ip() {
    /bin/ip "$@"
}

node() { # NAME IPV4 IPV6
    ip netns add "$1"
    ip netns exec "$1" sysctl -q -w net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
    ip link add "up-$1" type veth peer name cable netns "$1"
    ip link set "up-$1" master br0 up
    ip -n "$1" link set lo up
    ip -n "$1" link set cable up
    # A card whose driver has no native XDP, as a Pi's has none.
    ip -n "$1" link add link cable name eth0 type macvlan mode bridge
    ip -n "$1" link set eth0 up
    # As on a wire: packets that a machine sends to its like without a checksum are not XDP's to send on.
    ip netns exec "$1" ethtool -K cable tx off >/dev/null
    ip netns exec "$1" ethtool -K eth0 tx off >/dev/null
    [ -z "$2" ] || ip -n "$1" address add "$2/24" dev eth0
    [ -z "$3" ] || ip -n "$1" address add "$3/64" dev eth0 nodad
}

in_node() { # NAME COMMAND...
    local name=$1
    shift
    ip netns exec "$name" "$@"
}

enrol() { # NAME CLOUD
    mkdir -p "/run/$1"
    in_node cloud $P/cyphonic-cloud token create --config /run/cloud/cloud.yaml --name "$1" > "/run/$1/token"
    chmod 600 "/run/$1/token"
    cat > "/run/$1/agent.yaml" <<END
state_dir: /run/$1/state
socket: /run/$1/socket
token_file: /run/$1/token
cloud: ["$2"]
dns:
  resolver: none
END
    # Not by the function, whose process number is another.
    /bin/ip netns exec "$1" $P/cyphonicd --config "/run/$1/agent.yaml" > "/run/$1/log" 2>&1 &
    eval "PID_$1=$!"
}

cyphonic() { # NAME ARGUMENTS...
    local name=$1
    shift
    in_node "$name" $P/cyphonic --socket "/run/$name/socket" "$@" 2>&1
}

reach() { # FROM TO
    cyphonic "$1" ping "$2.$ZONE"
    local address
    address=$(cyphonic "$2" ip)
    echo "@ping $1 $2 $(in_node "$1" ping -6 -c 10 "$address" | grep 'packets transmitted')"
}

ip link add br0 type bridge
ip link set br0 up
node cloud 192.0.2.2 2001:db8::2
node trs 192.0.2.3 2001:db8::3
node a 192.0.2.10 ""
node b 192.0.2.11 ""
node d "" 2001:db8::13

in_node cloud $P/cyphonic-cloud init --dir /run/cloud --zone $ZONE --public 192.0.2.2:443 --public '[2001:db8::2]:443' \
    --trs 'trs1=192.0.2.3:443,[2001:db8::3]:443'
in_node cloud $P/cyphonic-cloud trs-credentials --dir /run/cloud --name trs1 --out /run/trs
in_node cloud $P/cyphonic-cloud run --config /run/cloud/cloud.yaml > /run/cloud/log 2>&1 &
in_node trs $P/cyphonic-cloud run --config /run/trs/cloud.yaml > /run/trs/log 2>&1 &
sleep 2
enrol a 192.0.2.2:443
enrol b 192.0.2.2:443
enrol d '[2001:db8::2]:443'
for name in a b d; do
    cyphonic $name wait --timeout 120 || { echo "$name did not come online:"; cat /run/$name/log; }
done
# Idle: 5 s after it was ready an agent gives back what starting took.
sleep 10
grep -E 'RssAnon|RssFile' "/proc/$PID_a/status"
echo "@rss a $(grep VmRSS "/proc/$PID_a/status")"
reach a b
reach a d
# Until a has found out what both its paths carry: an emulated machine may stand still for a second, or three.
tries=0
until [ "$(cyphonic a status --json | grep -c '"path_known": true')" = 2 ] || [ $tries = 100 ]; do
    tries=$((tries + 1))
    sleep 1
done
for name in a b d; do
    echo "@status $name $(cyphonic $name status --json | tr -d '\n')"
done
echo "@trs-status $(in_node trs $P/cyphonic-cloud trs-status --json | tr -d '\n')"
grep -i 'xdp\|relay' /run/trs/log | head -5 | sed 's/^/@trs-log /'
cyphonic a status
for name in a b d; do
    cyphonic $name down
done
