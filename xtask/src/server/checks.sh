# Before every script of an emulated server. Lines with @ok and @fail are read by server/checks.rs.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive LC_ALL=C HOME=/root

check() { # WHAT COMMAND...
    what=$1
    shift
    if out=$("$@" 2>&1); then
        echo "@ok $what"
    else
        echo "@fail $what: $(echo "$out" | tail -n 12 | tr '\n' '|')"
    fi
    # For who wonders where the time goes.
    echo "# at $(cut -d ' ' -f 1 /proc/uptime) s"
}

not() {
    ! "$@"
}

# Until it holds. An emulated machine is slow, and how slow is the host's business.
eventually() { # COMMAND...
    for _ in $(seq 60); do
        if "$@"; then
            return 0
        fi
        sleep 2
    done
    return 1
}

is() { # PROPERTY VALUE UNIT
    test "$(systemctl show -P "$1" "$3")" = "$2"
}

echo "# up at $(cut -d ' ' -f 1 /proc/uptime) s"

