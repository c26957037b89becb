# Runs where Vagrant would be: connects a pair over SSH, one end of which is this machine, and notes meanwhile what
# systemd-resolved is told. $1 is where notes go.

# In the machine's own network, which this is not.
machine() {
    nsenter --net=/proc/1/ns/net "$@"
}

# Agents give a set-up up after some seconds, which an emulated machine may take: it is tried anew, from the overlay's founding on.
connect() {
    for _ in 1 2 3; do
        if /stage/xtask nat-grid --scene nat-grid-pair --name trial --topology /stage/topology.yaml \
            --ssh "$CYPHONIC_SSH_CONFIG"; then
            return 0
        fi
    done
    return 1
}

connect > "$1/verb" 2>&1 &
verb=$!
while kill -0 "$verb" 2>/dev/null; do
    agent=$(systemctl show -P MainPID cyphonicd)
    [ "$agent" = 0 ] || echo "$agent" > "$1/agent"
    if machine resolvectl domain cyph0 2>/dev/null | grep -q '~cyphonic\.internal' &&
        machine resolvectl dns cyph0 | grep -q '127\.0\.0\.55'; then
        : > "$1/taken"
        machine resolvectl default-route cyph0 > "$1/default-route"
    fi
    sleep 1
done
wait "$verb"
echo $? > "$1/status"
cat "$1/verb" > /dev/console
# What the machine's own network has: the way to the cloud and back as the profile has it (4.412 ms), and no other way out.
machine ip -4 addr show dev lan0 > "$1/address"
machine ip -4 route show default > "$1/route"
machine ping -c 5 -i 0.5 192.0.2.2 > "$1/ping"
own=$(machine ip -4 -o addr show dev eth0 | sed 's/.* inet \([0-9.]*\).*/\1/')
if ping -c 1 -W 2 "$own" > /dev/null; then
    : > "$1/around"
fi
