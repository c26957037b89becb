# The life of the packages on a Debian with systemd, systemd-resolved, sshd and a firewall. /debs has the packages in two revisions.

# What is not ours: firewall, SSH, resolver, routes and rules, kernel settings.
surroundings() {
    nft list ruleset
    find /etc/ssh /etc/nftables.conf /etc/systemd/resolved.conf -type f -exec md5sum {} +
    readlink /etc/resolv.conf
    cat /etc/resolv.conf
    ip rule
    ip route show table all | grep -v cyph0
    ip -6 route show table all | grep -v cyph0
    # Global servers are listed together with those of links.
    resolvectl dns | grep -v -e cyph0 -e Global
    resolvectl domain | grep -v cyph0
    systemctl is-active ssh nftables systemd-resolved
}

forwarding() {
    sysctl -a 2>/dev/null | grep -E '^net\.ipv[46]\.(conf\.[a-z0-9]+\.forwarding|ip_forward)' | grep -v cyph0
}

etc() {
    find /etc ! -type d -printf '%p %l ' -exec md5sum -- {} + 2>/dev/null | sort
}

unchanged() { # SINCE
    surroundings > /run/now
    diff "/run/$1" /run/now
}

status_has() { # TEXT
    cyphonic status --json | tr -d ' \n' | grep -qF "$1"
}

zone_is_routed() {
    resolvectl domain cyph0 | grep -q '~trial\.internal' && resolvectl dns cyph0 | grep -q '127\.0\.0\.55'
}

only_the_zone() {
    resolvectl default-route cyph0 | grep -q ': no$'
}

served() {
    ss -lun | grep -q '127\.0\.0\.55:53'
}

no_trace() {
    not ip link show cyph0 && not grep -q trial.internal /run/systemd/resolve/stub-resolv.conf && not served
}

ip link add net0 type dummy 2>/dev/null || { modprobe dummy && ip link add net0 type dummy; }
ip address add 192.0.2.1/24 dev net0
ip link set net0 up
for i in 1 2 3 4 5 6 7 8 9 10; do
    systemctl is-active --quiet ssh systemd-resolved nftables && break
    sleep 3
done
surroundings > /run/before
forwarding > /run/forwarding
etc > /run/etc

check "install" dpkg -i /debs/cyphonic_*-1_*.deb /debs/cyphonic-cloud_*-1_*.deb
check "installing starts nothing that is not set up" is ActiveState inactive cyphonicd
check "and that is no failure" is Result success cyphonicd
check "the services are enabled" systemctl is-enabled cyphonicd cyphonic-cloud
check "installing changes nothing else" unchanged before
check "a unit's syntax" systemd-analyze verify --man=no /lib/systemd/system/cyphonicd.service /lib/systemd/system/cyphonic-cloud.service
check "a manual page" test -s /usr/share/man/man1/cyphonic-status.1.gz
check "completions" bash -c '. /usr/share/bash-completion/completions/cyphonic && complete -p cyphonic'
check "copyright" test -s /usr/share/doc/cyphonic/copyright

check "found an overlay" cyphonic-cloud init --dir /var/lib/cyphonic-cloud --zone trial.internal --public 192.0.2.1:443
check "the cloud starts" systemctl start cyphonic-cloud
install -d -m 700 /etc/credstore
export CYPHONIC_CLOUD_CONFIG=/var/lib/cyphonic-cloud/cloud.yaml
(umask 077 && cyphonic-cloud token create --name device > /etc/credstore/cyphonic.token)
sed -i 's/^#CYPHONIC_CLOUD=.*/CYPHONIC_CLOUD=192.0.2.1:443/' /etc/default/cyphonicd
check "the agent enrols by a credential" systemctl start cyphonicd
check "and comes online" cyphonic wait --timeout 120
check "systemd watches it" is WatchdogUSec 1min cyphonicd
check "eBPF works in the sandbox" not status_has '"classifier":{"kind":"none"'
check "systemd-resolved has the zone" zone_is_routed
check "and asks it for nothing else" only_the_zone
check "and answers for it" resolvectl query device.trial.internal
check "nothing else changed" unchanged before
busctl get-property org.freedesktop.resolve1 /org/freedesktop/resolve1 org.freedesktop.resolve1.Manager DNS
cat /etc/resolv.conf; ls -l /etc/resolv.conf; cat /run/systemd/resolve/resolv.conf | tail -n 4
cyphonic status | grep DNS; resolvectl dns
address=$(cyphonic ip)

echo CYPHONIC_RING=xdp >> /etc/default/cyphonicd
check "reload or restart" systemctl reload-or-restart cyphonicd
check "it comes back" cyphonic wait --timeout 120
check "AF_XDP works in the sandbox" status_has '"ring":{"kind":"xdp"'
restarts=$(systemctl show -P NRestarts cyphonicd)
systemctl kill --signal KILL cyphonicd
sleep 4
check "a killed agent comes back" cyphonic wait --timeout 120
check "by systemd" test "$(systemctl show -P NRestarts cyphonicd)" -gt "$restarts"
check "with the zone" zone_is_routed
mkdir -p /run/systemd/system/cyphonicd.service.d
printf '[Service]\nRestart=no\n' > /run/systemd/system/cyphonicd.service.d/trial.conf
systemctl daemon-reload
systemctl kill --signal KILL cyphonicd
sleep 4
check "a killed agent that stays away leaves no trace" no_trace
rm -r /run/systemd/system/cyphonicd.service.d
systemctl daemon-reload
systemctl reset-failed cyphonicd 2>/dev/null
sed -i /CYPHONIC_RING/d /etc/default/cyphonicd
check "start again" systemctl start cyphonicd

check "upgrade" dpkg -i /debs/cyphonic_*-2_*.deb /debs/cyphonic-cloud_*-2_*.deb
check "both run after it" systemctl is-active cyphonicd cyphonic-cloud
check "online after it" cyphonic wait --timeout 120
check "the device is who it was" test "$(cyphonic ip)" = "$address"
check "settings are kept" grep -q '^CYPHONIC_CLOUD=192' /etc/default/cyphonicd

check "remove" dpkg -r cyphonic cyphonic-cloud
check "removing leaves no trace of the zone" no_trace
check "the rest is as it was" unchanged before
check "identity and settings stay" test -s /var/lib/cyphonic/identity/key.pem -a -s /etc/default/cyphonicd
check "purge" dpkg -P cyphonic cyphonic-cloud
check "the device's key is gone" not test -e /var/lib/cyphonic
check "the overlay's register is not" test -s /var/lib/cyphonic-cloud/register.db
rm -r /etc/credstore
forwarding > /run/now
check "forwarding is as it was" diff /run/forwarding /run/now
etc > /run/now
check "/etc is as it was" diff /run/etc /run/now
check "firewall, SSH and resolver are as they were" unchanged before
journalctl --no-pager -q -u cyphonicd -u cyphonic-cloud -o cat | tail -n 60
