//! The configuration that `init` and `trs-credentials` write: complete, commented, ready to run.

use std::fmt::Write as _;
use std::net::SocketAddr;

use super::{ServiceAddresses, ServiceRole};
use crate::network::Network;

/// What the written configuration says.
#[derive(Debug)]
pub struct Template<'a> {
    /// The overlay.
    pub network: &'a Network,
    /// What the process runs.
    pub roles: &'a [ServiceRole],
    /// Where it listens.
    pub listen: &'a [SocketAddr],
    /// Where devices reach it.
    pub public: &'a [SocketAddr],
    /// Relays on other machines.
    pub relays: &'a [ServiceAddresses],
    /// The name this process has as a relay.
    pub relay_name: &'a str,
    /// The name this process has as an NMS.
    pub nms_name: &'a str,
    /// Where the NMS is that this one stands in for.
    pub follows: Option<&'a [SocketAddr]>,
    /// Whether it keeps register and devices' authority.
    pub keeps_register: bool,
}

impl Template<'_> {
    /// The file's text.
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        self.write_network(out)?;
        self.write_service(out)?;
        if let Some(follows) = self.follows {
            self.write_follows(out, follows)?;
        }
        if self.keeps_register {
            self.write_register(out)?;
            out.push_str(ACCESS);
        }
        self.write_certificates(out)?;
        out.push_str(LOG);
        Ok(())
    }

    fn write_network(&self, out: &mut String) -> std::fmt::Result {
        out.push_str(HEAD);
        writeln!(out, "zone: {}", self.network.zone)?;
        writeln!(out, "network_id: \"{}\"", self.network.id)?;
        writeln!(out, "prefix: \"{}\"", self.network.prefix)
    }

    fn write_service(&self, out: &mut String) -> std::fmt::Result {
        out.push_str(ROLES);
        let roles: Vec<_> = self.roles.iter().map(ToString::to_string).collect();
        writeln!(out, "roles: [{}]", roles.join(", "))?;
        out.push_str(LISTEN);
        write_list(out, "listen", self.listen)?;
        out.push_str(TCP);
        out.push_str(PUBLIC);
        write_list(out, "public", self.public)?;
        if self.keeps_register {
            out.push_str(NMS);
        }
        out.push_str(STUN);
        if self.keeps_register {
            out.push_str(RELAYS);
            self.write_relays(out)?;
            out.push_str(STANDBYS);
        }
        if self.roles.contains(&ServiceRole::Trs) {
            out.push_str(RELAY_NAME);
            writeln!(out, "trs_name: {}", self.relay_name)?;
            out.push_str(RELAY);
        }
        Ok(())
    }

    fn write_relays(&self, out: &mut String) -> std::fmt::Result {
        if self.relays.is_empty() {
            return out.write_str("trs: []\n");
        }
        out.push_str("trs:\n");
        for relay in self.relays {
            writeln!(out, "  - name: {}", relay.name)?;
            let addresses: Vec<_> = relay.addresses.iter().map(|a| format!("\"{a}\"")).collect();
            writeln!(out, "    addresses: [{}]", addresses.join(", "))?;
        }
        Ok(())
    }

    fn write_follows(&self, out: &mut String, follows: &[SocketAddr]) -> std::fmt::Result {
        out.push_str(FOLLOWS);
        let addresses: Vec<_> = follows.iter().map(|a| format!("\"{a}\"")).collect();
        writeln!(out, "follows: {{ addresses: [{}] }}", addresses.join(", "))?;
        writeln!(out, "nms_name: {}", self.nms_name)?;
        out.push_str("register: register.db\n");
        Ok(())
    }

    fn write_register(&self, out: &mut String) -> std::fmt::Result {
        out.push_str(REGISTER);
        out.push_str("register: register.db\n");
        out.push_str(DEVICES_AUTHORITY);
        out.push_str("devices_authority: { certificate: pki/devices.crt, key: pki/devices.key }\n");
        out.push_str(LIFETIMES);
        out.push_str("device_certificate_lifetime: 90d\ntoken_lifetime: 1h\n");
        Ok(())
    }

    fn write_certificates(&self, out: &mut String) -> std::fmt::Result {
        out.push_str(ROOT);
        out.push_str("root: pki/root.crt\n");
        out.push_str(CERTIFICATES);
        out.push_str("certificates:\n");
        for role in self.roles {
            let file = match role {
                ServiceRole::Trs => self.relay_name.to_owned(),
                ServiceRole::Nms => self.nms_name.to_owned(),
                ServiceRole::As => role.to_string(),
            };
            writeln!(out, "  {role}: {{ certificate: pki/{file}.crt, key: pki/{file}.key }}")?;
        }
        Ok(())
    }
}

fn write_list(out: &mut String, key: &str, addresses: &[SocketAddr]) -> std::fmt::Result {
    if addresses.is_empty() {
        return writeln!(out, "{key}: []");
    }
    writeln!(out, "{key}:")?;
    addresses.iter().try_for_each(|address| writeln!(out, "  - \"{address}\""))
}

const HEAD: &str = "\
# Configuration of a Cyphonic cloud. Read once at start; paths are relative to this file.
# Unknown keys are errors: a typo is told, not ignored.

# The overlay itself. These three stand in every certificate: changing them means enrolling every device anew.
# zone: the DNS zone of all names. network_id: random, tells overlays apart. prefix: the random /48 of all virtual
# addresses (RFC 4193).
";

const ROLES: &str = "
# What this process runs: as (enrols and authenticates devices), nms (registers them and steers their tunnels),
# trs (relays for pairs that cannot reach each other). All three share one port; each may also run alone.
";

const LISTEN: &str = "
# Where it listens (UDP). \"[::]:443\" is every address, IPv4 and IPv6.
";

const TCP: &str = "
# Whether it listens on TCP at the same addresses too, for devices whose network passes no UDP: auto (where and as soon
# as no other program does), on, off. Let TCP through the firewall as UDP is.
tcp: auto
";

const PUBLIC: &str = "
# The addresses by which devices reach it: IPv4 and IPv6 if it has both, behind a port forwarding the outer ones.
";

const NMS: &str = "\
# Where the nms is a process of its own (on this machine, since it shares the register): the addresses by which devices
# reach it, which the as tells them. Unless written, those of `public`.
#nms: [\"192.0.2.10:4443\"]
";

const STUN: &str = "\
# Devices ask every service from where it sees them (STUN), to learn what their NATs do. alternate_addresses: further
# addresses of this host, at most one of each IP version, which tell more (RFC 5780). alternate_port: a second port that
# answers, to be opened in the firewall too; 0 is none. Unless written, it is 3479 where that is free.
stun:
  alternate_addresses: []
";

const RELAYS: &str = "
# Relays on other machines (`cyphonic-cloud trs-credentials` makes their certificates). If this process has the role
# trs it is a relay too, by its public addresses.
";

const STANDBYS: &str = "
# NMSs on other machines that stand in while this one cannot be reached, in the order in which devices turn to them
# (`cyphonic-cloud standby-credentials` makes their certificates). They copy names and keys' hashes of all devices from here.
#standbys:
#  - name: nms2
#    addresses: [\"192.0.2.30:443\", \"[2001:db8::30]:443\"]
";

const FOLLOWS: &str = "
# The nms that this one stands in for, by the addresses at which devices reach it; the name of this one, as in its
# certificate and in `standbys` there; and its copy of the register. Relays and access rules it is told, too.
";

const RELAY_NAME: &str = "
# The name of this process as a relay, as in its certificate.
";

const RELAY: &str = "
# How it relays. mode: native (XDP in the network card's driver), generic (XDP behind any driver), userspace, or auto,
# the first of them that works. interfaces: where XDP is attached; [] is those with a default route or one of this
# process's addresses. bindings: two per relayed tunnel; in the kernel each takes 256 bytes always, bound or not,
# and about 310 in this process while it is bound. rate_limit: how much each may carry, none or such as 100Mbit. pins: the BPF
# file system, where XDP relaying goes on while this process is killed and restarted; mounted if it is not.
relay:
  mode: auto
  interfaces: []
  bindings: 131072
  rate_limit: none
  pins: /sys/fs/bpf
";

const REGISTER: &str = "
# The register of tokens, devices and certificates (SQLite). Back it up together with pki/.
";

const DEVICES_AUTHORITY: &str = "
# The authority that signs devices' certificates. Whoever has its key can add devices: keep the file private.
";

const LIFETIMES: &str = "
# How long a device's certificate is valid (devices renew by themselves in time), and how long an enrolment token
# can be used unless `token create --ttl` says otherwise, at most 365d.
";

const ACCESS: &str = "
# Who may open what at which devices; without it, nothing is restricted. `from` and `at` name devices (press-7.hall,
# press-*.hall, .hall for all below it, all), `to` is ping, tcp, udp, sctp, tcp/22, udp/5000-5010 or all. What no rule allows is
# denied; a device's own rules (agent.yaml) may allow less. After a change: systemctl reload cyphonic-cloud.
#access:
#  - {from: all, at: all, to: ping}
#  - {from: [hmi.hall, .office], at: press-*.hall, to: [tcp/22, tcp/502]}
# What these rules are to come to. A file whose rules do not is refused: by `check`, by a reload, and at the start.
#access_tests:
#  - {from: hmi.hall, at: press-7.hall, may: tcp/502, may_not: [tcp/80, udp]}
";

const ROOT: &str = "
# The root that all certificates chain to. Its key (pki/root.key, on the machine where `init` ran) is not needed here.
";

const CERTIFICATES: &str = "
# The services' own certificates.
";

const LOG: &str = "
# What is logged: error, warn, info, debug or trace; per module as info,cyphonic_cloud=debug. At info stands who was enrolled,
# replaced, revoked or refused, by name; other names, and addresses, appear from debug on.
log: info
";

#[cfg(test)]
mod tests {
    use std::path::Path;

    use cyphonic_proto::node::MAX_RELAYS;

    use super::*;
    use crate::config::{Config, ConfigError};
    use crate::pki::NMS_NAME;

    fn network() -> Network {
        Network {
            id: cyphonic_proto::identity::NetworkId([0xab; 16]),
            zone: "cyphonic.internal".into(),
            prefix: "fd12:3456:789a::/48".parse().unwrap(),
        }
    }

    fn text(roles: &[ServiceRole], relays: &[ServiceAddresses]) -> String {
        Template {
            network: &network(),
            roles,
            listen: &["[::]:443".parse().unwrap()],
            public: &["192.0.2.1:443".parse().unwrap(), "[2001:db8::1]:443".parse().unwrap()],
            relays,
            relay_name: "trs1",
            nms_name: NMS_NAME,
            follows: None,
            keeps_register: roles != [ServiceRole::Trs],
        }
        .render()
    }

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("/srv/cloud.yaml"))
    }

    #[test]
    fn what_is_written_reads_back() {
        let config = parse(&text(&ServiceRole::ALL, &[])).unwrap();
        assert_eq!(config.network, network());
        assert_eq!(config.roles.len(), 3);
        assert_eq!(config.register.as_deref(), Some(Path::new("/srv/register.db")));
        assert_eq!(config.relays[0].name, "trs1");
        assert_eq!(config.relays[0].addresses, config.public);
        assert_eq!(config.nms_addresses, config.public);
        assert_eq!(config.certificates.relay.unwrap().key, Path::new("/srv/pki/trs1.key"));
    }

    #[test]
    fn addresses_that_include_others_are_refused() {
        let sound = text(&[ServiceRole::As, ServiceRole::Nms], &[]);
        let listening_on = |addresses: &str| {
            let listen = "listen:\n  - \"[::]:443\"\n";
            assert!(sound.contains(listen), "{sound}");
            parse(&sound.replace(listen, &format!("listen: [{addresses}]\n")))
        };
        for bad in ["'[::]:443', '0.0.0.0:443'", "'192.0.2.1:443', '0.0.0.0:443'", "'[::]:443', '[::1]:443'"]
        {
            let error = listening_on(bad).unwrap_err();
            assert!(matches!(&error, ConfigError::Invalid { key: "listen", .. }), "{bad}: {error}");
        }
        for good in
            ["'[::]:443', '0.0.0.0:444'", "'[::1]:443', '0.0.0.0:443'", "'[::1]:443', '127.0.0.1:443'"]
        {
            listening_on(good).unwrap();
        }
    }

    #[test]
    fn rules_are_tried_as_they_are_read() {
        let sound = text(&ServiceRole::ALL, &[]);
        let with = |test: &str| {
            let rule = "access: [{from: hmi, at: all, to: tcp/502}]";
            parse(&sound.replace("tcp: auto", &format!("tcp: auto\n{rule}\naccess_tests: [{test}]")))
        };
        assert_eq!(with("{from: hmi, at: a, may: tcp/502, may_not: ping}").unwrap().access.unwrap().len(), 1);
        let error = with("{from: a, at: hmi, may: tcp/502}").unwrap_err();
        assert!(matches!(&error, ConfigError::Invalid { key: "access_tests", .. }), "{error}");
        // As the comments have it.
        let used: Vec<_> = sound
            .lines()
            .map(|line| match line.trim_start_matches('#') {
                code if line.starts_with('#')
                    && (code.starts_with("access") || code.starts_with("  - {from")) =>
                {
                    code
                }
                _ => line,
            })
            .collect();
        assert_eq!(parse(&used.join("\n")).unwrap().access.unwrap().len(), 2);
    }

    #[test]
    fn standbys_are_told_of() {
        let sound = text(&ServiceRole::ALL, &[]);
        let mut lines = sound.lines().skip_while(|line| *line != "#standbys:").take(3);
        let written = lines.clone().collect::<Vec<_>>().join("\n");
        let used: Vec<_> = lines.by_ref().map(|line| line.trim_start_matches('#')).collect();
        let config = parse(&sound.replace(&written, &used.join("\n"))).unwrap();
        assert_eq!((config.standbys.len(), config.standbys[0].name.as_str()), (1, "nms2"));
        assert_eq!((config.follows, config.nms_name.as_str()), (None, "nms"));
    }

    #[test]
    fn a_standby_has_what_it_needs_and_nothing_that_it_is_told() {
        let follows = ["192.0.2.1:443".parse().unwrap()];
        let sound = Template {
            network: &network(),
            roles: &[ServiceRole::Nms],
            listen: &["[::]:443".parse().unwrap()],
            public: &["192.0.2.30:443".parse().unwrap()],
            relays: &[],
            relay_name: "trs1",
            nms_name: "nms2",
            follows: Some(&follows),
            keeps_register: false,
        }
        .render();
        let config = parse(&sound).unwrap();
        assert_eq!((config.follows.as_deref(), config.nms_name.as_str()), (Some(&follows[..]), "nms2"));
        assert_eq!(config.certificates.management.unwrap().key, Path::new("/srv/pki/nms2.key"));
        assert_eq!(config.register.as_deref(), Some(Path::new("/srv/register.db")));
        for (from, to, key) in [
            ("nms_name: nms2", "", "nms_name"),
            ("nms_name: nms2", "nms_name: as", "nms_name"),
            ("follows: { addresses: [\"192.0.2.1:443\"] }", "", "nms_name"),
            ("[\"192.0.2.1:443\"]", "[]", "follows"),
            ("roles: [nms]", "roles: [as, nms]", ""),
            ("roles: [nms]", "roles: [nms, trs]", ""),
            ("nms_name: nms2", "nms_name: nms2\naccess: []", ""),
            ("nms_name: nms2", "nms_name: nms2\naccess: [{from: all, at: all, to: all}]", "access"),
            ("nms_name: nms2", "nms_name: nms2\ntrs: [{name: a, addresses: [\"192.0.2.3:443\"]}]", "trs"),
            (
                "nms_name: nms2",
                "nms_name: nms2\nstandbys: [{name: a, addresses: [\"192.0.2.3:443\"]}]",
                "standbys",
            ),
            ("register: register.db\n", "", "register"),
        ] {
            assert!(sound.contains(from), "{from}");
            let result = parse(&sound.replace(from, to));
            let error = result.expect_err(to).to_string();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn an_external_relay_is_listed() {
        let relay =
            ServiceAddresses { name: "trs9".into(), addresses: vec!["192.0.2.9:443".parse().unwrap()] };
        let config =
            parse(&text(&[ServiceRole::As, ServiceRole::Nms], std::slice::from_ref(&relay))).unwrap();
        assert_eq!(config.relays, [relay]);
    }

    #[test]
    fn a_relay_alone_needs_no_register() {
        let config = parse(&text(&[ServiceRole::Trs], &[])).unwrap();
        assert!(config.register.is_none() && config.devices_authority.is_none());
    }

    #[test]
    fn an_nms_elsewhere_is_told_of() {
        let sound = text(&ServiceRole::ALL, &[]);
        let public = parse(&sound).unwrap();
        assert_eq!(public.nms_addresses, public.public);
        let config = parse(&sound.replace("\n#nms:", "\nnms:")).unwrap();
        assert_eq!(config.nms_addresses, ["192.0.2.10:4443".parse().unwrap()]);
    }

    #[test]
    fn there_are_no_more_relays_than_devices_know() {
        let sound = text(&ServiceRole::ALL, &[]);
        let with = |others: usize| {
            let relays: Vec<_> = (0..others)
                .map(|n| format!("{{ name: other{n}, addresses: [\"192.0.2.1:{}\"] }}", 1000 + n))
                .collect();
            parse(&sound.replace("trs: []", &format!("trs: [{}]", relays.join(", "))))
        };
        assert_eq!(with(MAX_RELAYS - 1).unwrap().relays.len(), MAX_RELAYS, "this process is one, too");
        let error = with(MAX_RELAYS).unwrap_err();
        assert!(matches!(&error, ConfigError::Invalid { key: "trs", .. }), "{error}");
    }

    #[test]
    fn faults_name_key_and_line() {
        let sound = text(&ServiceRole::ALL, &[]);
        let line = |needle: &str| sound.lines().position(|line| line.starts_with(needle)).unwrap() + 1;
        let cases = [
            ("zone: cyphonic.internal", "zone: a..b", "zone"),
            ("prefix: \"fd12", "prefix: \"2012", "prefix"),
            ("network_id: \"ab", "network_id: \"xy", "network_id"),
            ("roles: [as, nms, trs]", "roles: [as, nsm, trs]", "roles"),
            ("token_lifetime: 1h", "token_lifetime: soon", "token_lifetime"),
            ("token_lifetime: 1h", "token_lifetime: 366d", "token_lifetime"),
            ("trs_name: trs1", "trs_name: t.r.s", "trs_name"),
            ("trs_name: trs1", "trs_nam: trs1", "trs_nam"),
            ("  mode: auto", "  mode: fast", "relay.mode"),
            ("tcp: auto", "tcp: perhaps", "tcp"),
            ("  rate_limit: none", "  rate_limit: 5", "relay.rate_limit"),
            ("  bindings: 131072", "  bindings: many", "relay.bindings"),
            ("  alternate_addresses: []", "  alternate_port: many", "stun.alternate_port"),
            ("  alternate_addresses: []", "  alternate_addresses: [\"::\"]", "stun.alternate_addresses"),
            ("  - \"192.0.2.1:443\"", "  - \"0.0.0.0:443\"", "public[0]"),
        ];
        for (from, to, key) in cases {
            assert!(sound.contains(from), "{from}");
            let message = parse(&sound.replace(from, to)).unwrap_err().to_string();
            let at = format!("line {}", line(from));
            assert!(message.contains(key), "{message}");
            assert!(message.contains(&at), "{message}: not {at}");
        }
    }

    #[test]
    fn keys_that_do_not_go_together_are_named() {
        let sound = text(&ServiceRole::ALL, &[]);
        let cases = [
            ("register: register.db\n", "", "register"),
            ("tcp: auto", "tcp: auto\nnms_name: nms2", "nms_name"),
            ("tcp: auto", "tcp: auto\nstandbys: [{name: a, addresses: []}]", "standbys"),
            ("tcp: auto", "tcp: auto\nfollows: {addresses: [\"192.0.2.3:443\"]}", "follows"),
            ("  bindings: 131072", "  bindings: 1", "relay.bindings"),
            ("  alternate_addresses: []", "  alternate_port: 443", "stun.alternate_port"),
            (
                "  alternate_addresses: []",
                "  alternate_addresses: [\"192.0.2.1\"]",
                "stun.alternate_addresses",
            ),
            ("roles: [as, nms, trs]", "roles: []", "roles"),
            ("roles: [as, nms, trs]", "roles: [as, nms, trs, as]", "roles"),
            ("  - \"[::]:443\"\n", "  - \"192.0.2.1:443\"\n  - \"192.0.2.2:443\"\n", "listen"),
            (
                "device_certificate_lifetime: 90d",
                "device_certificate_lifetime: 2s",
                "device_certificate_lifetime",
            ),
            ("  trs: { certificate: pki/trs1.crt, key: pki/trs1.key }\n", "", "certificates.trs"),
            ("log: info", "log: inof", "log"),
            ("log: info", "log: ''", "log"),
            ("log: info", "log: info,cyphonic_cloud=debgu", "log"),
            ("log: info", "log: \"info,=debug\"", "log"),
        ];
        for (from, to, key) in cases {
            assert!(sound.contains(from), "{from}");
            let error = parse(&sound.replace(from, to)).unwrap_err();
            assert!(matches!(&error, ConfigError::Invalid { key: k, .. } if *k == key), "{error}");
        }
    }

    #[test]
    fn what_is_not_yaml_is_told() {
        assert!(matches!(parse("zone: [unclosed"), Err(ConfigError::Syntax { .. })));
        assert!(matches!(parse(""), Err(ConfigError::Syntax { .. })));
        assert!(parse("zone: a.example").unwrap_err().to_string().contains("network_id"));
    }
}
