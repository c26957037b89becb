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

# Without what makes the agent's group, which outlives the package: its number is not to be given to another.
etc() {
    find /etc ! -type d ! -name 'group*' ! -name 'gshadow*' ! -name .pwd.lock -printf '%p %l\n' -exec md5sum -- {} + 2>/dev/null | sort
}

unchanged() { # SINCE
    surroundings > /run/now
    diff "/run/$1" /run/now
}

status_has() { # TEXT
    cyphonic status --json | tr -d ' \n' | grep -qF "$1"
}

awake_may_be_asked_for() {
    status_has '"awake":"keptawakefor20ms' || status_has '"awake":"notkeptawake:thiskernelhaltsprocessorswhateverisasked'
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

# One line of /proc/PID/status of a service's main process.
confined() { # LINE UNIT
    grep -q "$1" "/proc/$(systemctl show -P MainPID "$2")/status"
}

rings_outrank_applications() {
    ring=no
    for task in "/proc/$(systemctl show -P MainPID cyphonicd)/task"/*; do
        case $(cat "$task/comm") in
        ring-*) [ "$(cut -d ' ' -f 19 "$task/stat")" = -8 ] || return 1; ring=yes ;;
        esac
    done
    [ "$ring" = yes ]
}

# Hangs both services as a whole, with their watchdogs at 40 s (on a busy machine a start takes more than 20): systemd ends them
# and starts them again. That an engine that hangs alone is noticed too is a unit test's matter.
watchdogs_end_what_hangs() {
    agent=$(systemctl show -P NRestarts cyphonicd)
    cloud=$(systemctl show -P NRestarts cyphonic-cloud)
    systemctl kill --kill-whom main --signal STOP cyphonicd cyphonic-cloud
    eventually restarted cyphonicd "$agent" && eventually restarted cyphonic-cloud "$cloud" || return 1
    for unit in cyphonicd cyphonic-cloud; do
        journalctl -q -u "$unit" | grep 'Watchdog timeout' || return 1
    done
}

restarted() { # UNIT SINCE
    test "$(systemctl show -P NRestarts "$1")" -gt "$2" && systemctl is-active --quiet "$1"
}

kill_for_good() { # UNIT
    mkdir -p "/run/systemd/system/$1.service.d"
    printf '[Service]\nRestart=no\n' > "/run/systemd/system/$1.service.d/trial.conf"
    systemctl daemon-reload
    systemctl kill --signal KILL "$1"
    eventually is ActiveState failed "$1"
}

may_return() { # UNIT
    rm -r "/run/systemd/system/$1.service.d"
    systemctl daemon-reload
    systemctl reset-failed "$1"
}

short_watchdogs() {
    for unit in cyphonicd cyphonic-cloud; do
        mkdir -p "/run/systemd/system/$unit.service.d"
        printf '[Service]\nWatchdogSec=40\n' > "/run/systemd/system/$unit.service.d/watchdog.conf"
    done
    systemctl daemon-reload && systemctl restart cyphonic-cloud cyphonicd
}

long_watchdogs() {
    rm /run/systemd/system/*/watchdog.conf
    systemctl daemon-reload && systemctl restart cyphonic-cloud cyphonicd
}

waits_to_be_enrolled() {
    cyphonic status | grep 'not enrolled yet' && systemctl status cyphonicd | grep 'Status: "not enrolled yet'
}

relays_in_xdp() {
    journalctl --no-pager -q -u cyphonic-cloud -o cat | grep -i relay
    cyphonic-cloud trs-status | grep 'XDP program'
}

a_manual_page_for_every_verb() { # PROGRAM
    for verb in $("$1" --help | sed -n '/^Commands:/,/^$/s/^  \([a-z-]*\) .*/\1/p'); do
        test "$verb" = help || test -s "/usr/share/man/man1/$1-$verb.1.gz" || { echo "$verb"; return 1; }
    done
    test -s "/usr/share/man/man1/$1.1.gz"
}

# As where the disk was full when the agent stopped. The package's own script, which removing has run and purging runs again.
purges_all_but_what_is_needed() {
    mv /etc/resolv.conf /run/resolv.conf
    printf '# Edited by cyphonicd, and not restored\nnameserver 127.0.0.55\n' > /etc/resolv.conf
    echo '{}' > /var/lib/cyphonic/resolver/resolv.conf.json
    /var/lib/dpkg/info/cyphonic.postrm remove 2> /run/removed
    /var/lib/dpkg/info/cyphonic.postrm purge 2> /run/purged
    purged=$?
    cat /run/purged
    mv /run/resolv.conf /etc/resolv.conf
    [ "$purged" = 0 ] && grep -q 'is kept in' /run/removed && grep -q 'cyphonicd cleanup' /run/purged && test "$(ls /var/lib/cyphonic)" = resolver &&
        test -s /var/lib/cyphonic/resolver/resolv.conf.json
}

conffiles() { # PACKAGE FILES...
    package=$1
    shift
    test "$(dpkg-query -W -f '${Conffiles}\n' "$package" | awk 'NF { print $1 }' | xargs)" = "$*"
}

ip link add net0 type veth peer name net0-far
ip address add 192.0.2.1/24 dev net0
# Link-local addresses would come later, by themselves.
for end in net0-far net0; do
    ip link set "$end" addrgenmode none
    ip link set "$end" up
done
eventually systemctl is-active --quiet ssh systemd-resolved nftables
surroundings > /run/before
forwarding > /run/forwarding
etc > /run/etc
find /sys/fs/bpf > /run/bpf

check "install" dpkg -i /debs/cyphonic_*-1_*.deb /debs/cyphonic-cloud_*-1_*.deb
check "installing starts nothing that is not set up" is ActiveState inactive cyphonicd
check "and that is no failure" is Result success cyphonicd
check "the services are enabled" systemctl is-enabled cyphonicd cyphonic-cloud
check "installing changes nothing else" unchanged before
check "a unit's syntax" systemd-analyze verify --man=no /lib/systemd/system/cyphonicd.service /lib/systemd/system/cyphonicd@.service \
    /lib/systemd/system/cyphonic-cloud.service
for program in cyphonic cyphonicd cyphonic-cloud; do
    check "manual pages of $program" a_manual_page_for_every_verb "$program"
    check "its completions" bash -c ". /usr/share/bash-completion/completions/$program && complete -p $program"
    check "for other shells" test -s "/usr/share/zsh/vendor-completions/_$program" -a -s "/usr/share/fish/vendor_completions.d/$program.fish"
done
check "the agent's configuration is marked as such" conffiles cyphonic /etc/default/cyphonicd
check "and the cloud's" conffiles cyphonic-cloud /etc/default/cyphonic-cloud
check "no package brings another resolver with it" test -z "$(dpkg-query -W -f '${Recommends}${Pre-Depends}' cyphonic cyphonic-cloud)"
check "copyright" test -s /usr/share/doc/cyphonic/copyright

check "found an overlay" bash -o pipefail -c "cyphonic-cloud init --dir /var/lib/cyphonic-cloud --zone trial.internal --public 192.0.2.1:443 | tee /run/init"
check "and say how its unit is started" grep -q 'systemctl start cyphonic-cloud$' /run/init
# What it would choose by itself on a network card without XDP in its driver. A virtual cable it would leave alone.
sed -i 's/^  mode: auto$/  mode: generic/' /var/lib/cyphonic-cloud/cloud.yaml
install -d -m 700 /etc/credstore
(umask 077 && cyphonic-cloud token create --name device > /etc/credstore/cyphonic.token)
sed -i 's/^#CYPHONIC_CLOUD=.*/CYPHONIC_CLOUD=192.0.2.1:443/' /etc/default/cyphonicd
check "the agent starts while its cloud is away" timeout 90 systemctl start cyphonicd
check "is live" cyphonic status --check live
check "and says what it waits for" waits_to_be_enrolled
check "the cloud starts" systemctl start cyphonic-cloud
check "its relay is in XDP" relays_in_xdp
check "the agent enrols by a credential and comes online" cyphonic wait --timeout 120
check "it has told systemd so itself" is Type notify cyphonicd
check "its control socket has the packages' group" test "$(stat -c '%G %a' /run/cyphonic/cyphonic.sock)" = 'cyphonic 660'
check "whose members may ask" setpriv --reuid=nobody --regid=nogroup --groups="$(getent group cyphonic | cut -d : -f 3)" cyphonic status --check live
check "and nobody else" not setpriv --reuid=nobody --regid=nogroup --clear-groups cyphonic status --check live
check "its folder is nobody else's" test "$(stat -c %a /var/lib/cyphonic)" = 700
for unit in cyphonicd cyphonic-cloud; do
    check "systemd watches $unit" is WatchdogUSec 1min "$unit"
    # NET_BIND_SERVICE, NET_ADMIN, NET_RAW, IPC_LOCK, PERFMON, BPF; and SYS_NICE, for the agent's rings.
    capabilities=000000c000007400
    [ "$unit" = cyphonicd ] && capabilities=000000c000807400
    check "it can have no more capabilities than it uses" confined "^CapBnd:.$capabilities$" "$unit"
    check "and no more by a program it starts" confined '^NoNewPrivs:.1$' "$unit"
    check "its system calls are filtered" confined '^Seccomp:.2$' "$unit"
    check "its sandbox as systemd judges it" systemd-analyze security --no-pager --threshold=50 "$unit"
done
check "its rings outrank applications" rings_outrank_applications
check "eBPF works in the sandbox" not status_has '"classifier":{"kind":"none"'
check "systemd-resolved has the zone" zone_is_routed
check "and asks it for nothing else" only_the_zone
check "and answers for it" resolvectl query device.trial.internal
check "nothing else changed" unchanged before
address=$(cyphonic ip)

echo 'access: [{from: all, to: ping}]' > /etc/cyphonic/agent.yaml
check "settings are read again" systemctl reload cyphonicd
check "and are in force" status_has '"access":{"rules":1,"overlay_rules":null'
echo 'acces: []' > /etc/cyphonic/agent.yaml
check "a mistake in them is told" not systemctl reload cyphonicd
check "and changes nothing" status_has '"access":{"rules":1,"overlay_rules":null'
rm /etc/cyphonic/agent.yaml
check "nor does a file that is gone" not systemctl reload cyphonicd
check "let everybody in" status_has '"access":{"rules":1,"overlay_rules":null'

cp /var/lib/cyphonic-cloud/cloud.yaml /run/cloud.yaml
echo 'access: [{from: all, at: all, to: ping}]' >> /var/lib/cyphonic-cloud/cloud.yaml
check "the overlay's rules are read again" systemctl reload cyphonic-cloud
check "and the device is told" eventually status_has '"access":{"rules":1,"overlay_rules":1'
echo 'acces: []' >> /var/lib/cyphonic-cloud/cloud.yaml
check "a mistake in its file is told" not systemctl reload cyphonic-cloud
cp /run/cloud.yaml /var/lib/cyphonic-cloud/cloud.yaml
check "the cloud starts without rules" systemctl restart cyphonic-cloud
check "and the device is told that, too" eventually status_has '"access":{"rules":1,"overlay_rules":null'

printf 'CYPHONIC_RING=xdp\nCYPHONIC_KEEP_AWAKE=20ms\n' >> /etc/default/cyphonicd
check "restart" systemctl restart cyphonicd
check "it comes back" cyphonic wait --timeout 120
check "with the settings that there are now" status_has '"access":null'
check "AF_XDP works in the sandbox" status_has '"ring":{"kind":"xdp"'
# Where the kernel would not heed it, that is all that stands against it.
check "processors can be kept awake from there, where they can be" awake_may_be_asked_for
restarts=$(systemctl show -P NRestarts cyphonicd)
systemctl kill --signal KILL cyphonicd
check "a killed agent is started again" eventually restarted cyphonicd "$restarts"
check "and comes back" cyphonic wait --timeout 120
check "with the zone" zone_is_routed
kill_for_good cyphonicd
check "a killed agent that stays away leaves no trace" eventually no_trace
check "and the host as it was, DNS and routes" unchanged before
may_return cyphonicd
sed -i '/CYPHONIC_RING/d; /CYPHONIC_KEEP_AWAKE/d' /etc/default/cyphonicd
check "start again, watched more closely" short_watchdogs
check "services that hang are ended and started again" watchdogs_end_what_hangs
check "start as before" long_watchdogs
check "the agent is back" cyphonic wait --timeout 120

restarts=$(systemctl show -P NRestarts cyphonicd)
echo 'interfase: cyph0' > /etc/cyphonic/agent.yaml
systemctl restart cyphonicd
check "a mistake in the settings ends the agent" eventually is ActiveState failed cyphonicd
check "once" is NRestarts "$restarts" cyphonicd
check "and leaves no trace" no_trace
check "and the host as it was" unchanged before
rm /etc/cyphonic/agent.yaml
check "without the mistake it starts" systemctl start cyphonicd
check "and comes back" cyphonic wait --timeout 120

check "upgrade" dpkg -i /debs/cyphonic_*-2_*.deb /debs/cyphonic-cloud_*-2_*.deb
check "both run after it" systemctl is-active cyphonicd cyphonic-cloud
check "online after it" cyphonic wait --timeout 120
check "the device is who it was" test "$(cyphonic ip)" = "$address"
check "settings are kept" grep -q '^CYPHONIC_CLOUD=192' /etc/default/cyphonicd

kill_for_good cyphonic-cloud
check "a killed relay's program goes on" sh -c 'ip link show net0 | grep xdp'
may_return cyphonic-cloud
check "remove" dpkg -r cyphonic cyphonic-cloud
check "removing leaves no trace of the zone" no_trace
check "and no program on the network card" not sh -c 'ip link show net0 | grep -q xdp'
find /sys/fs/bpf > /run/now
check "nor in the kernel's keeping" diff /run/bpf /run/now
check "the rest is as it was" unchanged before
check "identity and settings stay" test -s /var/lib/cyphonic/identity/key.pem -a -s /etc/default/cyphonicd
check "while resolv.conf is the agent's, purging keeps what stood there" purges_all_but_what_is_needed
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
