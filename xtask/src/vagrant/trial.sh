# Provisioning, and a scenario over SSH, on a Debian with systemd. /stage has what Vagrant copies to a machine, and the
# scenario. Lines with @ok and @fail are read by server/checks.rs.
mkdir -p /run/notes
cp -a /stage /tmp/cyphonic
chmod +x /stage/xtask /stage/cyphonic-lab-node
# Of the cloud's role, which namespaces play: its program, and a unit that has nothing to run.
dpkg --install /stage/cyphonic-cloud.deb > /dev/null

rehearse() {
    /stage/xtask vagrant-rehearse --machines /stage/machines.json --vagrant /stage --programs /stage --own open \
        sh /stage/scenario.sh /run/notes
}

slower_than_the_profile() {
    sed -n 's/^rtt .* = \([0-9]*\)\..*/\1/p' /run/notes/ping | grep -qE '^([4-9]|[1-9][0-9]+)$'
}

told_no_more() {
    ! resolvectl domain | grep -q cyphonic
}

says() { # FILE TEXT
    grep -q -e "$2" "/run/notes/$1" || {
        cat "/run/notes/$1"
        return 1
    }
}

check "the machine is provisioned, and the scenario runs over SSH" rehearse
check "provisioning starts the node at every boot" systemctl is-enabled --quiet cyphonic-lab-node.service
check "the node stands as a service" systemctl is-active --quiet cyphonic-lab-node.service
check "the machine's interface has the topology's name and address" says address '203\.0\.113\.67/26'
check "the agent's package is installed" dpkg-query -W cyphonic
check "the verb's promises were kept" says status '^0$'
check "it connected the machine's agent with another's, both ways" says verb '^connected  *2$'
check "systemd-resolved was given the zone" test -e /run/notes/taken
check "while the agent ran as its package's unit" says agent '^[1-9]'
check "and for the zone alone" says default-route ': no$'
check "systemd-resolved has the zone no more, once the unit has ended" eventually told_no_more
check "netem delays what the profile delays" slower_than_the_profile
check "the cable for management leads nowhere" sh -c '! grep -q eth0 /run/notes/route && test ! -e /run/notes/around'
