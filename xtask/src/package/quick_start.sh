# docs/quick-start.md and docs/operations.md, typed as they stand there: in place of each line `#: PAGE HEADING` come the page's
# commands (package/quick_start.rs). /repository has the packages, the lab's program and its topology.
#
# The server and the two devices are containers with systemd in the lab's networks. pi-1 has systemd-resolved, pi-2 has a
# plain /etc/resolv.conf, as Raspberry Pi OS has. The server's firewall lets in SSH only.

NODES="server=cloud pi-1=c pi-2=e"

step() { # MACHINE COMMAND
    check "$1: $2" on "$1" "$2"
}

# A person ends `ping` by hand, and answers apt with yes (below).
on() { # MACHINE COMMAND
    by_hand="ping() { timeout --signal INT --preserve-status 15 ping \"\$@\"; }; $2"
    case $1 in
    pc) (cd /repository && sh -c "$by_hand") < /dev/null ;;
    *)
        nsenter --target "$(leader "$1")" --mount --uts --ipc --net --pid --root -- \
            env --ignore-environment HOME=/root PATH="$PATH" LC_ALL=C TERM=dumb sh -c "cd /root; $by_hand" < /dev/null
        ;;
    esac
}

leader() { # MACHINE
    pgrep --parent "$(systemctl show -P MainPID "$1")"
}

# The files of this system, and its own over them.
files() { # MACHINE
    mkdir -p "/machines/$1/upper" "/machines/$1/work" "/machines/$1/root"
    mount -t overlay -o "lowerdir=/,upperdir=/machines/$1/upper,workdir=/machines/$1/work" overlay "/machines/$1/root"
    root=/machines/$1/root
    rm -rf "$root/repository" "$root/etc/systemd/system/default.target" "$root/etc/nftables.conf"
    # Without one it would be a first boot, which enables every unit there is.
    tr -d - < /proc/sys/kernel/random/uuid > "$root/etc/machine-id"
    ln -s /lib/systemd/system/multi-user.target "$root/etc/systemd/system/default.target"
    echo 'APT::Get::Assume-Yes "true";' > "$root/etc/apt/apt.conf.d/yes"
    rm -rf "$root/root/.ssh"
    install -d -m 700 "$root/root/.ssh"
    cp /root/.ssh/id_ed25519.pub "$root/root/.ssh/authorized_keys"
    echo 'StrictHostKeyChecking accept-new' > "$root/etc/ssh/ssh_config.d/first-use.conf"
}

boot() { # MACHINE
    node=${NODES#*"$1"=}
    systemd-run --quiet --unit "$1" --property Delegate=yes --property Type=notify --property TimeoutStartSec=infinity \
        systemd-nspawn --quiet --boot --keep-unit --register=no --notify-ready=yes --machine="$1" --directory="/machines/$1/root" \
        --network-namespace-path="/run/netns/docs-${node%% *}" --capability=all --system-call-filter=bpf \
        --bind=/dev/net/tun --resolv-conf=off --timezone=off
}

# ssh from the PC, which has networks of its own to reach them by.
cat > /usr/local/bin/reach << 'END'
#!/bin/bash
case $1 in
192.0.2.2) machine=server ;;
*) machine=$1 ;;
esac
exec nsenter --net --target "$(pgrep --parent "$(systemctl show -P MainPID "$machine")")" \
    bash -c 'exec 3<> /dev/tcp/127.0.0.1/22; cat <&3 & cat >&3; kill $!'
END
chmod 755 /usr/local/bin/reach
install -d -m 700 /root/.ssh
printf 'StrictHostKeyChecking accept-new\nLogLevel ERROR\nProxyCommand /usr/local/bin/reach %%h\n' > /root/.ssh/config
ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519

modprobe overlay
modprobe tun
mkdir -p /machines
mount -t tmpfs machines /machines
check "the lab" /repository/xtask lab up --name docs --topology /repository/topology.yaml --scene quick-start
for machine in server pi-1 pi-2; do
    files "$machine"
done
cat > /machines/server/root/etc/nftables.conf << 'END'
table inet filter {
    chain input {
        type filter hook input priority 0; policy drop;
        ct state established,related accept
        iif lo accept
        tcp dport 22 accept
    }
}
END
ln -s /dev/null /machines/pi-2/root/etc/systemd/system/systemd-resolved.service
rm /machines/pi-2/root/etc/resolv.conf
echo 'nameserver 192.168.10.1' > /machines/pi-2/root/etc/resolv.conf
for machine in server pi-1 pi-2; do
    check "$machine starts" boot "$machine"
done
# The user pi, who has allowed pi-1 in.
on pi-1 "ssh-keygen -q -t ed25519 -N '' -f .ssh/id_ed25519"
on pi-2 "useradd --create-home pi && install -d -m 700 -o pi /home/pi/.ssh"
install -m 644 /machines/pi-1/root/root/.ssh/id_ed25519.pub /machines/pi-2/root/home/pi/.ssh/authorized_keys

#: quick-start.md 1. Build the packages, on a PC with Debian 12
#: quick-start.md 2. The server
#: quick-start.md 3. Each Pi
#: quick-start.md 4. Use it

looks() { # MACHINE COMMAND TEXT
    on "$1" "$2" > /run/looks
    cat /run/looks
    grep -q "$3" /run/looks
}

check "pi-1 says that packets go directly" looks pi-1 'cyphonic status' 'direct'
check "and that systemd-resolved has the zone" looks pi-1 'cyphonic status' 'systemd-resolved'
check "pi-2, that /etc/resolv.conf has it" looks pi-2 'cyphonic status' 'resolv.conf'
for machine in pi-1 pi-2; do
    check "$machine starts the agent at boot" looks "$machine" 'systemctl is-enabled cyphonicd' '^enabled'
done

#: operations.md Many devices
check "the server has a token for many devices" looks server 'cyphonic-cloud token list' 'camera-[*].gate.home.internal  *open  *0/50'
# A machine without an agent, beside pi-1: it says what it is.
on pi-1 'ip address add 192.168.1.20/32 dev lo'
on pi-1 'systemd-run --quiet --unit plc systemd-socket-activate --accept --inetd --listen 192.168.1.20:502 echo a controller'
#: operations.md Reach what has no agent
on pi-1 'cyphonic --instance plc wait --timeout 120'
controller='bash -c "cat < /dev/tcp/plc.home.internal/502"'
check "pi-2 reaches a machine without an agent" looks pi-2 "$controller" 'a controller'
ssh_of='timeout 10 bash -c "head -c 4 < /dev/tcp/NAME.home.internal/22"'
check "pi-1 has SSH" looks pi-2 "$(echo "$ssh_of" | sed s/NAME/pi-1/)" SSH-
check "which is not reached by the machine's name" not looks pi-2 "$(echo "$ssh_of" | sed s/NAME/plc/)" SSH-
check "its agent says so" looks pi-1 'cyphonic --instance plc status' '1 since the start'
check "and starts at boot" looks pi-1 'systemctl is-enabled cyphonicd@plc' '^enabled'
sandbox="systemctl show -P NoNewPrivileges -P CapabilityBoundingSet -P ProtectSystem"
check "in the sandbox of pi-1's own" on pi-1 "test \"\$($sandbox cyphonicd@plc)\" = \"\$($sandbox cyphonicd)\""
check "with folders of its own" looks pi-1 'systemctl show -P StateDirectory -P RuntimeDirectory cyphonicd@plc | uniq' '^cyphonic@plc$'
#: operations.md Short names
for machine in pi-1 pi-2; do
    on "$machine" 'cyphonic wait --timeout 120'
done
check "pi-1 writes a short name, which systemd-resolved searches" looks pi-1 'getent ahostsv6 pi-2' 'pi-2.home.internal'
check "and pi-2, by /etc/resolv.conf" looks pi-2 'getent ahostsv6 pi-1' 'pi-1.home.internal'
cp /repository/target/debian/*-2_amd64.deb /machines/server/root/root/
cp /repository/target/debian/*-2_amd64.deb /machines/pi-1/root/root/
cp /repository/target/debian/*-2_amd64.deb /machines/pi-2/root/root/
#: operations.md Back up
# The server's disk is lost.
on server 'systemctl stop cyphonic-cloud; rm -r /var/lib/cyphonic-cloud/*'
# The backup was kept by somebody else.
on server 'chown -R 1000:1000 /root/backup'
#: operations.md Restore
check "the restored cloud knows its devices" looks server 'cyphonic-cloud device list' 'pi-1'
check "who need nothing new" looks pi-1 'cyphonic wait --timeout 120; cyphonic ping --count 3 pi-2.home.internal; cyphonic status' 'pi-2'
certificate=/machines/server/root/var/lib/cyphonic-cloud/pki/nms.crt
cp "$certificate" /run/nms.crt
#: operations.md Renew the services' certificates
check "the NMS has another certificate" not cmp "$certificate" /run/nms.crt
check "which devices believe" looks pi-1 'cyphonic wait --timeout 120; cyphonic ping --count 3 pi-2.home.internal; cyphonic status' 'pi-2'
#: operations.md Upgrade
check "reachable after it" on pi-1 'cyphonic wait --timeout 120; ping -c 3 pi-2.home.internal'
on pi-1 'cyphonic --instance plc wait --timeout 120'
check "so is what pi-1 stands for" looks pi-2 "$controller" 'a controller'
version=$(on pi-1 'cyphonic --version' | cut -d ' ' -f 2)
check "by an agent of the new version" looks pi-1 'cyphonic --instance plc status --json' "\"version\": \"$version\""

#: quick-start.md Take it away
check "pi-2 has its resolv.conf again" looks pi-2 'cat /etc/resolv.conf' '^nameserver 192.168.10.1'
check "pi-1 has nothing of its second agent" not on pi-1 'ls -d /var/lib/cyphonic@plc /etc/cyphonic /etc/systemd/system/multi-user.target.wants/cyphonicd@plc.service 2> /dev/null | grep . || ip link show plc || ip -6 rule | grep 5100'
check "pi-1 has no zone any more" not looks pi-1 'resolvectl domain' 'home.internal'
# Symptoms: what the page says that one sees.
on pi-1 'apt-get install ./cyphonic_*-2_amd64.deb; systemctl start cyphonicd'
check "a device that is not set up is not started" looks pi-1 'systemctl status cyphonicd || true' 'condition failed'
check "and says so to the command" looks pi-1 'cyphonic status 2>&1 || true' 'systemctl start cyphonicd'
