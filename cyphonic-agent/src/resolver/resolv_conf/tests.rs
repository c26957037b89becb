use std::os::unix::fs::symlink;

use super::*;
use crate::resolver::edit::Was;
use crate::resolver::journal::aside;

const OWN: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 55));
const HOST: &str =
    "# host\nnameserver 192.0.2.1\nsearch example.com\nnameserver 2001:db8::1\noptions ndots:2\n";

struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("journal")).unwrap();
        Self { dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("resolv.conf")
    }

    fn journal(&self) -> PathBuf {
        self.dir.path().join("journal")
    }

    fn host(&self) -> Host {
        let (run, hostname) = (self.dir.path().join("run"), self.dir.path().join("hostname"));
        Host { resolv_conf: self.path(), run, hostname, ..Host::default() }
    }

    fn prepare(&self) -> Prepared {
        ResolvConf::prepare(&self.host(), &self.journal(), OWN).unwrap()
    }

    fn write_resolved(&self, text: &str) -> PathBuf {
        let place = self.dir.path().join("run/systemd/resolve/resolv.conf");
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::write(&place, text).unwrap();
        place
    }

    fn text(&self) -> String {
        fs::read_to_string(self.path()).unwrap()
    }

    fn is_clean(&self) -> bool {
        fs::read_dir(self.journal()).unwrap().next().is_none()
    }
}

/// As an earlier version did, and as programs leave it that drop comments.
fn edited_without_telling(text: &str) -> String {
    let edit = edited(text, OWN, &Search::default(), &Was::File);
    edit.split_inclusive('\n').filter(|line| !line.starts_with("#cyphonicd: ")).collect()
}

#[test]
fn our_server_becomes_the_only_one_and_everything_else_stays() {
    let host = Machine::new();
    fs::write(host.path(), HOST).unwrap();
    let prepared = host.prepare();
    let upstream = prepared.upstream();
    assert_eq!(upstream.servers(), ["192.0.2.1:53".parse().unwrap(), "[2001:db8::1]:53".parse().unwrap()]);
    let applied = prepared.apply().unwrap();
    assert_eq!(nameservers(&host.text()), ["127.0.0.55:53".parse().unwrap()]);
    assert!(host.text().contains("search example.com\n") && host.text().contains("options ndots:2\n"));
    assert!(applied.is_intact().unwrap());
    applied.restore().unwrap();
    assert_eq!(host.text(), HOST);
    assert!(host.is_clean());
}

#[test]
fn domains_are_searched_while_the_file_is_ours_whoever_writes_it() {
    let host = Machine::new();
    fs::write(host.path(), HOST).unwrap();
    let search = ["gate.cyphonic.internal", "cyphonic.internal"].map(String::from);
    let mut applied = host.prepare().searching(&search).apply().unwrap();
    let look_twice = |file: &mut ResolvConf| {
        for _ in 0..2 {
            file.follow().unwrap();
        }
    };
    let searched = |text: &str| {
        let lines = text.lines().filter(|line| line.starts_with("search ")).map(str::to_owned);
        lines.collect::<Vec<_>>()
    };
    assert_eq!(searched(&host.text()), ["search gate.cyphonic.internal cyphonic.internal example.com"]);
    // A DHCP client that gets its lease after us; and one that builds on what it finds, and drops comments.
    fs::write(host.path(), DHCP).unwrap();
    look_twice(&mut applied);
    assert_eq!(searched(&host.text()), ["search gate.cyphonic.internal cyphonic.internal lan"]);
    let without_comments: String =
        host.text().split_inclusive('\n').filter(|line| !line.starts_with('#')).collect();
    fs::write(host.path(), format!("nameserver 203.0.113.9\n{without_comments}")).unwrap();
    look_twice(&mut applied);
    assert_eq!(searched(&host.text()), ["search gate.cyphonic.internal cyphonic.internal lan"]);
    assert_eq!(nameservers(&host.text()), ["127.0.0.55:53".parse().unwrap()]);
    // Nothing of ours is taken for the file's own.
    applied.restore().unwrap();
    assert_eq!(searched(&host.text()), ["search lan"]);
    let mut applied = host.prepare().searching(&search).apply().unwrap();
    // A crash; the next start has no short names.
    let restored = HOST.replace("search example.com\n", "");
    fs::write(host.path(), &restored).unwrap();
    look_twice(&mut applied);
    std::mem::forget(applied);
    let applied = host.prepare().apply().unwrap();
    assert!(searched(&host.text()).is_empty(), "{}", host.text());
    applied.restore().unwrap();
    assert_eq!(host.text(), restored);
}

#[test]
fn the_domain_of_the_hosts_name_is_searched_as_before() {
    let host = Machine::new();
    let text = "nameserver 192.0.2.1\n";
    fs::write(host.path(), text).unwrap();
    for (name, searched) in [
        ("press-7.plant.example\n", "search cyphonic.internal plant.example\n"),
        ("press-7\n", "search cyphonic.internal\n"),
        ("press-7.\n", "search cyphonic.internal\n"),
    ] {
        fs::write(host.host().hostname, name).unwrap();
        let applied = host.prepare().searching(&["cyphonic.internal".into()]).apply().unwrap();
        assert!(host.text().contains(searched), "{name}: {}", host.text());
        applied.restore().unwrap();
        assert_eq!(host.text(), text);
    }
}

#[test]
fn domains_that_the_file_searched_before_stay_its_own() {
    let host = Machine::new();
    let text = "nameserver 192.0.2.1\nsearch cyphonic.internal lan\n";
    fs::write(host.path(), text).unwrap();
    let mut applied = host.prepare().searching(&["cyphonic.internal".into()]).apply().unwrap();
    for _ in 0..3 {
        assert_eq!(applied.follow().unwrap(), Look::Quiet);
    }
    applied.restore().unwrap();
    assert_eq!(host.text(), text);
}

#[test]
fn mode_and_kind_come_back() {
    let host = Machine::new();
    fs::write(host.path(), HOST).unwrap();
    fs::set_permissions(host.path(), fs::Permissions::from_mode(0o604)).unwrap();
    host.prepare().apply().unwrap().restore().unwrap();
    assert_eq!(fs::metadata(host.path()).unwrap().permissions().mode() & 0o777, 0o604);
}

#[test]
fn an_absent_file_is_absent_again() {
    let host = Machine::new();
    let prepared = host.prepare();
    assert_eq!(prepared.upstream().servers(), ["127.0.0.1:53".parse().unwrap()]);
    let applied = prepared.apply().unwrap();
    assert!(host.path().exists());
    applied.restore().unwrap();
    assert!(!host.path().exists() && host.is_clean());
}

#[test]
fn a_link_is_a_link_again_and_its_target_untouched() {
    let host = Machine::new();
    let target = host.dir.path().join("run.conf");
    fs::write(&target, HOST).unwrap();
    symlink("run.conf", host.path()).unwrap();
    let applied = host.prepare().apply().unwrap();
    assert_eq!(fs::read_to_string(&target).unwrap(), HOST);
    assert!(!fs::symlink_metadata(host.path()).unwrap().is_symlink());
    applied.restore().unwrap();
    assert_eq!(fs::read_link(host.path()).unwrap(), Path::new("run.conf"));
}

#[test]
fn after_a_crash_the_next_start_restores() {
    let host = Machine::new();
    fs::write(host.path(), HOST).unwrap();
    std::mem::forget(host.prepare().apply().unwrap());
    assert!(restore_journal(&host.journal()).unwrap());
    assert_eq!(host.text(), HOST);
    assert!(!restore_journal(&host.journal()).unwrap(), "once is enough");
}

#[test]
fn preparing_twice_never_takes_our_own_edit_for_the_original() {
    let host = Machine::new();
    fs::write(host.path(), HOST).unwrap();
    std::mem::forget(host.prepare().apply().unwrap());
    let applied = host.prepare().apply().unwrap();
    applied.restore().unwrap();
    assert_eq!(host.text(), HOST);
}

#[test]
fn what_someone_else_wrote_since_is_left_alone() {
    let host = Machine::new();
    fs::write(host.path(), HOST).unwrap();
    let applied = host.prepare().apply().unwrap();
    fs::write(host.path(), "nameserver 203.0.113.1\n").unwrap();
    assert!(!applied.is_intact().unwrap());
    applied.restore().unwrap();
    assert_eq!(host.text(), "nameserver 203.0.113.1\n");
    assert!(host.is_clean());
}

const DHCP: &str = "# Generated by NetworkManager\nsearch lan\nnameserver 203.0.113.1\n";

fn servers(list: &[&str]) -> Upstream {
    Upstream::new(
        list.iter().map(|server| SocketAddr::new(server.parse().unwrap(), 53)),
        SocketAddr::new(OWN, 53),
    )
}

#[test]
fn a_file_that_someone_else_wrote_is_ours_again_and_the_original_that_comes_back() {
    let host = Machine::new();
    fs::write(host.path(), HOST).unwrap();
    let mut applied = host.prepare().apply().unwrap();
    assert_eq!(applied.follow().unwrap(), Look::Quiet);
    fs::write(host.path(), DHCP).unwrap();
    assert_eq!(applied.follow().unwrap(), Look::Quiet, "it may be half written");
    assert_eq!(host.text(), DHCP);
    assert_eq!(applied.follow().unwrap(), Look::Taken(servers(&["203.0.113.1"])));
    assert!(applied.is_intact().unwrap());
    assert_eq!(nameservers(&host.text()), [SocketAddr::new(OWN, 53)]);
    assert!(host.text().contains("search lan\n") && !host.text().contains("example.com"));
    assert_eq!(applied.follow().unwrap(), Look::Quiet);
    // After a crash, and on stop.
    let saved = fs::read(host.journal().join(JOURNAL)).unwrap();
    applied.restore().unwrap();
    assert_eq!(host.text(), DHCP);
    assert!(host.is_clean());
    fs::write(host.journal().join(JOURNAL), saved).unwrap();
    fs::write(host.path(), edited(DHCP, OWN, &Search::default(), &Was::File)).unwrap();
    assert!(restore_journal(&host.journal()).unwrap());
    assert_eq!(host.text(), DHCP);
}

#[test]
fn a_file_that_still_changes_is_left_until_it_is_written() {
    let host = Machine::new();
    fs::write(host.path(), HOST).unwrap();
    let mut applied = host.prepare().apply().unwrap();
    for text in ["", "# Gen", DHCP] {
        fs::write(host.path(), text).unwrap();
        assert_eq!(applied.follow().unwrap(), Look::Quiet, "{text}");
        assert_eq!(host.text(), text);
    }
    fs::remove_file(host.path()).unwrap();
    assert_eq!(applied.follow().unwrap(), Look::Quiet);
    assert_eq!(applied.follow().unwrap(), Look::Taken(servers(&["127.0.0.1"])));
    applied.restore().unwrap();
    assert!(!host.path().exists());
}

#[test]
fn behind_a_link_the_servers_are_those_of_its_target_as_it_is_now() {
    let host = Machine::new();
    // As at boot: whoever owns the target writes it when there is a network.
    symlink("run.conf", host.path()).unwrap();
    let prepared = host.prepare();
    assert_eq!(prepared.upstream(), servers(&["127.0.0.1"]));
    let mut applied = prepared.apply().unwrap();
    let first = fs::read(host.path()).unwrap();
    fs::write(host.dir.path().join("run.conf"), DHCP).unwrap();
    assert_eq!(applied.follow().unwrap(), Look::Quiet);
    assert_eq!(applied.follow().unwrap(), Look::Servers(servers(&["203.0.113.1"])));
    assert_eq!(applied.follow().unwrap(), Look::Quiet);
    assert!(host.text().contains("search lan\n") && applied.is_intact().unwrap());
    // Killed before the newer edit was made, though it is in the journal.
    fs::write(host.path(), first).unwrap();
    assert!(restore_journal(&host.journal()).unwrap());
    assert_eq!(fs::read_link(host.path()).unwrap(), Path::new("run.conf"));
    // Somebody puts the link back while we run.
    let mut applied = host.prepare().apply().unwrap();
    applied.follow().unwrap();
    fs::remove_file(host.path()).unwrap();
    symlink("run.conf", host.path()).unwrap();
    applied.follow().unwrap();
    assert_eq!(applied.follow().unwrap(), Look::Taken(servers(&["203.0.113.1"])));
    applied.restore().unwrap();
    assert_eq!(fs::read_link(host.path()).unwrap(), Path::new("run.conf"));
    assert!(host.is_clean());
}

#[test]
fn what_others_made_of_our_edit_is_never_the_original() {
    let host = Machine::new();
    fs::write(host.path(), HOST).unwrap();
    let mut applied = host.prepare().apply().unwrap();
    // One puts back what it had saved, one puts its own server above what it found.
    fs::write(host.path(), format!("{}# back\n", host.text())).unwrap();
    applied.follow().unwrap();
    assert_eq!(
        applied.follow().unwrap(),
        Look::Taken(servers(&["192.0.2.1", "2001:db8::1"])),
        "our server alone says nothing of others"
    );
    fs::write(host.path(), format!("nameserver 203.0.113.1\n{}", host.text())).unwrap();
    applied.follow().unwrap();
    assert_eq!(
        applied.follow().unwrap(),
        Look::Taken(servers(&["203.0.113.1", "192.0.2.1", "2001:db8::1"])),
        "ours stands for those that stood there"
    );
    applied.restore().unwrap();
    assert!(host.text().starts_with("nameserver 203.0.113.1\n# host\nnameserver"), "{}", host.text());
    assert!(!host.text().contains("127.0.0.55") && !host.text().contains("cyphonicd"), "{}", host.text());
}

#[test]
fn a_file_that_is_left_to_another_server_is_not_taken() {
    let host = Machine::new();
    fs::write(host.path(), HOST).unwrap();
    let mut applied = host.prepare().apply().unwrap();
    applied.leave_to([127, 0, 0, 53].into());
    assert!(!applied.is_left());
    fs::write(host.path(), "nameserver 127.0.0.53\n").unwrap();
    for _ in 0..3 {
        assert_eq!(applied.follow().unwrap(), Look::Quiet);
    }
    assert!(applied.is_left() && !applied.is_intact().unwrap());
    applied.restore().unwrap();
    assert_eq!(host.text(), "nameserver 127.0.0.53\n");
    // Our edit of such a file, which somebody puts back, is ours all the same: programs ask us.
    let mut applied = host.prepare().apply().unwrap();
    applied.leave_to([127, 0, 0, 53].into());
    let saved = host.text();
    fs::write(host.path(), DHCP).unwrap();
    applied.follow().unwrap();
    applied.follow().unwrap();
    fs::write(host.path(), &saved).unwrap();
    applied.follow().unwrap();
    assert_eq!(applied.follow().unwrap(), Look::Taken(servers(&["127.0.0.53"])));
    assert!(applied.is_intact().unwrap() && !applied.is_left());
}

#[test]
fn our_edit_without_its_journal_is_not_the_original() {
    let host = Machine::new();
    // Somebody put a server of their own above ours, and the state directory was emptied.
    fs::write(host.path(), format!("nameserver 203.0.113.1\n{}", edited_without_telling(HOST))).unwrap();
    let prepared = host.prepare();
    assert_eq!(prepared.upstream(), servers(&["203.0.113.1"]));
    let applied = prepared.apply().unwrap();
    assert_eq!(applied.doubt(), None);
    applied.restore().unwrap();
    assert_eq!(host.text(), "nameserver 203.0.113.1\n# host\nsearch example.com\noptions ndots:2\n");
}

#[test]
fn where_our_edit_is_all_there_is_another_programs_file_is_the_original() {
    let host = Machine::new();
    let place = host.write_resolved("nameserver 127.0.0.55\nnameserver 192.0.2.1\n");
    fs::write(host.path(), edited_without_telling(HOST)).unwrap();
    let prepared = host.prepare();
    assert_eq!(prepared.upstream(), servers(&["192.0.2.1"]));
    let mut applied = prepared.apply().unwrap();
    assert!(applied.doubt().unwrap().contains(place.to_str().unwrap()));
    assert_eq!(applied.follow().unwrap(), Look::Quiet);
    // Somebody writes the file, and knows better.
    fs::write(host.path(), DHCP).unwrap();
    applied.follow().unwrap();
    assert_eq!(applied.follow().unwrap(), Look::Taken(servers(&["203.0.113.1"])));
    assert_eq!(applied.doubt(), None);
    applied.restore().unwrap();
    assert_eq!(host.text(), DHCP);
    fs::write(host.path(), edited_without_telling(HOST)).unwrap();
    host.prepare().apply().unwrap().restore().unwrap();
    assert_eq!(fs::read_link(host.path()).unwrap(), place);
}

#[test]
fn where_nobody_knows_the_original_at_least_our_server_goes() {
    let host = Machine::new();
    for (found, restored) in [("search lan\nnameserver 192.0.2.1\n", Some("search lan\n")), ("", None)] {
        fs::write(host.path(), edited_without_telling(found)).unwrap();
        let prepared = host.prepare();
        assert_eq!(prepared.upstream(), servers(&["127.0.0.1"]));
        let applied = prepared.apply().unwrap();
        assert!(applied.doubt().unwrap().contains("no other server is known"));
        applied.restore().unwrap();
        assert_eq!(fs::read_to_string(host.path()).ok().as_deref(), restored);
    }
}

#[test]
fn behind_the_stub_of_resolved_its_own_servers_are_asked() {
    let host = Machine::new();
    fs::write(host.path(), "nameserver 127.0.0.53\n").unwrap();
    assert_eq!(host.prepare().upstream(), servers(&["127.0.0.53"]), "whoever listens there instead");
    host.write_resolved("# No DNS servers known.\n");
    assert_eq!(host.prepare().upstream(), servers(&[]), "and not the stub, which will ask us");
    host.write_resolved("nameserver 192.0.2.1\n");
    let prepared = host.prepare();
    assert_eq!(prepared.upstream(), servers(&["192.0.2.1"]));
    let mut applied = prepared.apply().unwrap();
    assert_eq!(applied.follow().unwrap(), Look::Quiet);
    // It reads our address in resolv.conf, and the network changes.
    host.write_resolved("nameserver 127.0.0.55\nnameserver 192.0.2.2\n");
    assert_eq!(applied.follow().unwrap(), Look::Quiet);
    assert_eq!(applied.follow().unwrap(), Look::Servers(servers(&["192.0.2.2"])));
    fs::remove_dir_all(host.dir.path().join("run")).unwrap();
    assert_eq!(applied.follow().unwrap(), Look::Quiet, "it restarts");
    applied.restore().unwrap();
    assert_eq!(host.text(), "nameserver 127.0.0.53\n");
}

#[test]
fn an_edit_that_fails_leaves_the_file_as_it_was_found() {
    let host = Machine::new();
    fs::write(host.path(), HOST).unwrap();
    let mut applied = host.prepare().apply().unwrap();
    fs::write(host.path(), DHCP).unwrap();
    applied.follow().unwrap();
    // A folder in the way of the file aside, whoever runs the test.
    fs::create_dir(aside(&host.path())).unwrap();
    assert!(applied.follow().is_err());
    assert_eq!(host.text(), DHCP);
    applied.restore().unwrap();
    assert_eq!(host.text(), DHCP);
    assert!(host.is_clean());
}

#[test]
fn an_earlier_edit_that_cannot_be_undone_is_ours_until_it_can() {
    let host = Machine::new();
    let target = host.dir.path().join("run.conf");
    fs::write(&target, HOST).unwrap();
    for is_link in [false, true] {
        if is_link {
            fs::remove_file(host.path()).unwrap();
            symlink("run.conf", host.path()).unwrap();
        } else {
            fs::write(host.path(), HOST).unwrap();
        }
        std::mem::forget(host.prepare().apply().unwrap());
        let left = host.text();
        // A folder in the way of the file aside, whoever runs the test.
        fs::create_dir(aside(&host.path())).unwrap();
        let elsewhere = ResolvConf::prepare(&host.host(), &host.journal(), [127, 0, 0, 56].into());
        assert!(elsewhere.is_err(), "programs ask another address, where nobody listens");
        let prepared = host.prepare();
        assert_eq!(prepared.upstream(), servers(&["192.0.2.1", "2001:db8::1"]));
        let mut applied = prepared.apply().unwrap();
        assert!(applied.is_intact().unwrap() && host.text() == left);
        assert_eq!(applied.follow().unwrap(), Look::Quiet);
        fs::remove_dir(aside(&host.path())).unwrap();
        applied.restore().unwrap();
        assert_eq!(host.text(), HOST);
        assert_eq!(fs::symlink_metadata(host.path()).unwrap().is_symlink(), is_link);
        assert!(host.is_clean());
    }
    // What somebody else wrote since is not ours.
    fs::remove_file(host.path()).unwrap();
    fs::write(host.path(), HOST).unwrap();
    std::mem::forget(host.prepare().apply().unwrap());
    fs::write(host.path(), DHCP).unwrap();
    assert!(standing(&host.journal()).is_none());
    assert_eq!(host.prepare().upstream(), servers(&["203.0.113.1"]));
}

#[test]
fn a_vpn_that_puts_back_what_it_saved_brings_back_the_servers_from_before_it() {
    let host = Machine::new();
    let target = host.dir.path().join("run.conf");
    for is_link in [false, true] {
        let _ = fs::remove_file(host.path());
        if is_link {
            fs::write(&target, HOST).unwrap();
            symlink("run.conf", host.path()).unwrap();
        } else {
            fs::write(host.path(), HOST).unwrap();
        }
        for stops in [false, true] {
            let mut applied = host.prepare().apply().unwrap();
            let saved = host.text();
            fs::write(host.path(), "nameserver 10.8.0.1\n").unwrap();
            applied.follow().unwrap();
            assert_eq!(applied.follow().unwrap(), Look::Taken(servers(&["10.8.0.1"])));
            fs::write(host.path(), &saved).unwrap();
            if !stops {
                applied.follow().unwrap();
                assert_eq!(applied.follow().unwrap(), Look::Taken(servers(&["192.0.2.1", "2001:db8::1"])));
                assert_eq!(host.text(), saved);
            }
            applied.restore().unwrap();
            assert_eq!(host.text(), HOST, "and not our server, where nobody listens any more");
            assert_eq!(fs::symlink_metadata(host.path()).unwrap().is_symlink(), is_link);
            assert!(host.is_clean());
        }
    }
}

#[test]
fn our_edit_without_its_journal_tells_what_stood_there() {
    let host = Machine::new();
    // At another address, as where `dns: listen:` has changed since.
    fs::write(host.path(), edited(HOST, [127, 0, 0, 56].into(), &Search::default(), &Was::File)).unwrap();
    let prepared = host.prepare();
    assert_eq!(prepared.upstream(), servers(&["192.0.2.1", "2001:db8::1"]));
    let applied = prepared.apply().unwrap();
    assert_eq!(applied.doubt(), None);
    applied.restore().unwrap();
    assert_eq!(host.text(), HOST);
    fs::write(host.path(), edited("", OWN, &Search::default(), &Was::Nothing)).unwrap();
    host.prepare().apply().unwrap().restore().unwrap();
    assert!(!host.path().exists());
}
