//! Our edit of a resolv.conf file: what it says, and what it tells of the file that stood there before. Pure.
//!
//! Whoever saves the file while it is ours puts our edit back later. A VPN does so when it ends, and by then
//! the original that we know is the VPN's own file, with servers that are gone. So the edit has in comments
//! what it was made of.

use std::net::IpAddr;
use std::path::PathBuf;

use super::text::{keyword, names, nameservers};

/// The first lines of what we write. Our server is in the next.
const HEADER: &str = "# Edited by cyphonicd, which relays other names to the servers that stood here. Restored when it stops;\n\
     # after a crash by its next start or by `cyphonicd cleanup`.\n";

/// Before what the edit tells.
const TOLD: &str = "#cyphonicd: ";

/// What an edit stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Was {
    Nothing,
    File,
    Link(PathBuf),
}

impl Was {
    fn told(&self) -> String {
        let link = match self {
            Self::Nothing => return "was nothing".into(),
            Self::File => None,
            Self::Link(target) => target.to_str().filter(|target| !target.contains(['\n', '\r'])),
        };
        link.map_or_else(|| "was a file".into(), |target| format!("was a link to {target}"))
    }

    fn parse(told: &str) -> Option<Self> {
        match told {
            "was nothing" => Some(Self::Nothing),
            "was a file" => Some(Self::File),
            _ => Some(Self::Link(told.strip_prefix("was a link to ")?.into())),
        }
    }
}

/// Which domains programs are to search besides those of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Search {
    /// Before those of the file.
    pub(super) domains: Vec<String>,
    /// The domain of the host's name: resolv.conf(5) has it searched where no line of the file says what is.
    pub(super) of_host: Option<String>,
}

/// A file without what it has of ours, and with what that stood for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rest {
    pub(super) text: String,
    /// Nothing where our edit does not say, as one of an earlier version.
    pub(super) was: Option<Was>,
    /// It is our edit to the letter.
    pub(super) whole: bool,
}

/// The file with our server instead of its own, and with our search domains before its own.
pub(super) fn edited(text: &str, server: IpAddr, search: &Search, was: &Was) -> String {
    let Search { domains, of_host } = search;
    let mut out = format!("{HEADER}nameserver {server}\n");
    if !domains.is_empty() {
        let of_host = of_host.as_deref().filter(|_| !text.lines().any(is_search));
        let own = searched(text).chain(of_host).filter(|domain| !domains.iter().any(|ours| ours == domain));
        let all: Vec<_> = domains.iter().map(String::as_str).chain(own).collect();
        out.push_str(&format!("search {}\n", all.join(" ")));
    }
    out.push_str(&format!("{TOLD}{}\n", was.told()));
    // Its carriage returns are its own; a line that does not end would run into the next one.
    for line in text.split_inclusive('\n') {
        if keyword(line) == Some("nameserver") || (is_search(line) && !domains.is_empty()) {
            out.push_str(TOLD);
        }
        out.push_str(line.trim_end_matches('\n'));
        out.push('\n');
    }
    out
}

/// resolv.conf(5): the last of these lines counts, of either kind.
fn is_search(line: &str) -> bool {
    matches!(keyword(line), Some("search" | "domain"))
}

/// The file without these domains to be searched: whoever built on our edit, and dropped what it tells, took them for the
/// file's own. Nothing where they are not there.
pub(super) fn unsearched(text: &str, search: &Search) -> Option<String> {
    let is_ours = |domain: &str| search.domains.iter().any(|ours| ours == domain);
    let has_ours = |line: &str| is_search(line) && line.split_whitespace().skip(1).any(is_ours);
    if !text.lines().any(has_ours) {
        return None;
    }
    let mut rest = String::new();
    for line in text.split_inclusive('\n') {
        let own: Vec<_> = line.split_whitespace().filter(|word| !is_ours(word)).collect();
        match has_ours(line) {
            false => rest.push_str(line),
            true if own.len() > 1 => rest.push_str(&format!("{}\n", own.join(" "))),
            true => {}
        }
    }
    Some(rest)
}

/// The domains that are searched.
fn searched(text: &str) -> impl Iterator<Item = &str> {
    let last = text.lines().rfind(|line| is_search(line));
    last.into_iter().flat_map(|line| line.split_whitespace().skip(1))
}

/// The file without this server and our other lines, and otherwise to the letter. Where our server stands, it
/// stands for those that the edit tells. Nothing where there is nothing of ours.
pub(super) fn without(text: &str, server: IpAddr) -> Option<Rest> {
    let lines = || text.split_inclusive('\n');
    let (edits, search) = (server_of_edit(text), search_of_edit(text));
    let is_server = |line: &str| {
        let named = nameservers(line);
        names(&named, server) || edits.is_some_and(|edits| names(&named, edits))
    };
    let is_header = |line: &str| HEADER.split_inclusive('\n').any(|ours| ours == line);
    let is_our_search = |line: &str| search.is_some_and(|ours| line.trim_end_matches('\n') == ours);
    let stands = lines().any(is_server);
    if !stands && !lines().any(|line| is_header(line) || line.starts_with(TOLD)) {
        return None;
    }
    let (mut rest, mut was) = (String::new(), None);
    for line in lines().filter(|line| !is_server(line) && !is_header(line) && !is_our_search(line)) {
        match line.strip_prefix(TOLD) {
            None => rest.push_str(line),
            // Whoever has put others in our server's place wants these, and none beside them.
            Some(told) if !stands && !is_search(told) => {}
            Some(told) => match Was::parse(told.trim_end_matches(['\n', '\r'])) {
                Some(told) => was = Some(told),
                None => rest.push_str(told),
            },
        }
    }
    // All of them: those of the file come out once.
    let domains = search.into_iter().flat_map(searched).map(str::to_owned).collect();
    let searched = Search { domains, of_host: None };
    let whole =
        edits.zip(was.as_ref()).is_some_and(|(server, was)| edited(&rest, server, &searched, was) == text);
    Some(Rest { text: rest, was, whole })
}

/// The line by which an edit in this file has domains searched. One without tells at once what it was made of.
fn search_of_edit(text: &str) -> Option<&str> {
    let (_, after) = text.split_once(HEADER)?;
    let mut lines = after.lines().skip(1);
    let search = lines.next().filter(|line| is_search(line))?;
    lines.next().filter(|line| line.starts_with(TOLD)).map(|_| search)
}

/// What our edit stands for, where the file is that and nothing else.
pub(super) fn whole(text: &str) -> Option<Rest> {
    without(text, server_of_edit(text)?).filter(|rest| rest.whole)
}

/// Which server an edit in this file names: `dns: listen:` may have been another at the time.
fn server_of_edit(text: &str) -> Option<IpAddr> {
    let (_, after) = text.split_once(HEADER)?;
    let server = nameservers(after.lines().next()?).first()?.ip();
    server.is_loopback().then_some(server)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 55));

    fn ours(of_host: Option<&str>) -> Search {
        let domains = ["gate.cyphonic.internal", "cyphonic.internal"].map(String::from).into();
        Search { domains, of_host: of_host.map(str::to_owned) }
    }

    #[test]
    fn the_domain_of_the_hosts_name_is_searched_where_no_line_says_what_is() {
        let lines = |text: &str, search: &Search| {
            let edit = edited(text, OWN, search, &Was::File);
            assert_eq!(
                without(&edit, OWN).unwrap(),
                Rest { text: text.into(), was: Some(Was::File), whole: true }
            );
            edit.lines().filter(|line| is_search(line)).map(str::to_owned).collect::<Vec<_>>()
        };
        let search = ours(Some("plant.example"));
        let both = "search gate.cyphonic.internal cyphonic.internal";
        assert_eq!(lines("nameserver 192.0.2.1\n", &search), [format!("{both} plant.example")]);
        assert_eq!(lines("search lan\n", &search), [format!("{both} lan")]);
        // As the C library has it: an empty line says that nothing is.
        assert_eq!(lines("search\n", &search), [both]);
        assert_eq!(lines("", &ours(Some("cyphonic.internal"))), [both]);
        // Without short names the library finds it by itself.
        let none = Search { domains: Vec::new(), ..search };
        assert!(lines("nameserver 192.0.2.1\n", &none).is_empty());
    }

    #[test]
    fn what_removes_the_package_knows_our_edit() {
        let script = include_str!("../../dist/scripts/postrm");
        let pattern = script.split("grep -q '^").nth(1).unwrap().split('\'').next().unwrap();
        let edited = edited("nameserver 192.0.2.1\n", OWN, &Search::default(), &Was::File);
        assert!(!pattern.is_empty() && edited.starts_with(pattern), "{pattern}");
    }

    #[test]
    fn an_edit_tells_what_it_was_made_of() {
        let link = Was::Link("../run/NetworkManager/resolv.conf".into());
        for (text, was) in [
            ("", Was::Nothing),
            ("", Was::File),
            ("search lan\n", Was::File),
            ("# x\nnameserver 192.0.2.1\nsearch lan\nnameserver 192.0.2.2 # y\n", Was::File),
            ("nameserver 192.0.2.1\r\noptions ndots:2\r\n", Was::File),
            ("nameserver 192.0.2.1\n", link),
        ] {
            let edit = edited(text, OWN, &Search::default(), &was);
            assert_eq!(nameservers(&edit), [(OWN, 53).into()]);
            let told = Rest { text: text.into(), was: Some(was), whole: true };
            assert_eq!(without(&edit, OWN).as_ref(), Some(&told), "{edit}");
            // Also where our server has another address now.
            assert_eq!(without(&edit, [127, 0, 0, 56].into()), Some(told), "{edit}");
        }
        assert_eq!(without("nameserver 192.0.2.1\n", OWN), None);
        assert_eq!(whole("nameserver 192.0.2.1\nnameserver 127.0.0.55\n"), None);
    }

    #[test]
    fn what_others_made_of_an_edit_stands_for_what_they_meant() {
        let edit = edited("nameserver 192.0.2.1\nsearch lan\n", OWN, &Search::default(), &Was::File);
        let rest = |text: &str| {
            let rest = without(text, OWN).unwrap();
            (rest.text, rest.whole)
        };
        let above = format!("nameserver 203.0.113.1\n{edit}");
        let both = "nameserver 203.0.113.1\nnameserver 192.0.2.1\nsearch lan\n";
        assert_eq!(rest(&above), (both.into(), false));
        let replaced = edit.replace("nameserver 127.0.0.55", "nameserver 203.0.113.1");
        assert_eq!(rest(&replaced), ("nameserver 203.0.113.1\nsearch lan\n".into(), false));
    }

    #[test]
    fn search_domains_come_before_those_of_the_file_and_go_again() {
        let search = ours(None);
        for (text, line) in [
            ("nameserver 192.0.2.1\n", "search gate.cyphonic.internal cyphonic.internal"),
            (
                "domain old\nsearch lan\tsite.lan\noptions ndots:2\n",
                "search gate.cyphonic.internal cyphonic.internal lan site.lan",
            ),
            ("search lan\ndomain new.lan\n", "search gate.cyphonic.internal cyphonic.internal new.lan"),
        ] {
            let edit = edited(text, OWN, &search, &Was::File);
            let effective: Vec<_> = edit.lines().filter(|line| is_search(line)).collect();
            assert_eq!(effective, [line], "{edit}");
            let told = Rest { text: text.into(), was: Some(Was::File), whole: true };
            assert_eq!(without(&edit, OWN), Some(told), "{edit}");
        }
        // Whoever has put another server in ours' place keeps the search list of the file.
        let edit = edited("nameserver 192.0.2.1\nsearch lan\n", OWN, &search, &Was::File);
        let replaced = edit.replace("nameserver 127.0.0.55", "nameserver 203.0.113.1");
        assert_eq!(without(&replaced, OWN).unwrap().text, "nameserver 203.0.113.1\nsearch lan\n");
        // Whoever drops comments leaves our domains for the file's own.
        let without_comments =
            "nameserver 203.0.113.1\nsearch gate.cyphonic.internal cyphonic.internal lan\noptions x\n";
        let rest = unsearched(without_comments, &search).unwrap();
        assert_eq!(rest, "nameserver 203.0.113.1\nsearch lan\noptions x\n");
        assert_eq!(unsearched(&rest, &search), None);
        assert_eq!(unsearched("search cyphonic.internal\n", &search).as_deref(), Some(""));
        // Of an edit by an earlier version nothing is taken for ours that is not.
        let earlier = format!("{HEADER}nameserver 127.0.0.55\nsearch lan\noptions ndots:2\n");
        assert_eq!(without(&earlier, OWN).unwrap().text, "search lan\noptions ndots:2\n");
    }
}
