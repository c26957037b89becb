//! `cyphonic bugreport`: what somebody who is to help has to see, in one text, which its reader can read
//! before it is sent.

use std::ffi::OsStr;
use std::fmt::Display;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Result;
use cyphonic_proto::token;
use tokio::process::Command;

use super::output::say;
use super::status;
use crate::config::{self, Config, Instance, Overrides};

/// What is looked at besides the daemon, whose unit is `UNIT`. None of it shows a key, and of a token see
/// [`without_tokens`].
const COMMANDS: [&[&str]; 17] = [
    // The settings that win over the file, and those of the unit.
    &["cat", "/etc/default/UNIT"],
    &["systemctl", "cat", "--no-pager", "UNIT"],
    &["uname", "-a"],
    &["cat", "/etc/os-release"],
    &["timedatectl", "show"],
    &["ip", "-details", "address"],
    &["ip", "-6", "route", "show", "table", "all"],
    &["ip", "-4", "route"],
    &["ip", "-6", "rule"],
    &["ip", "-4", "rule"],
    &["sysctl", "net.ipv6.conf.all.disable_ipv6", "net.ipv6.conf.default.disable_ipv6"],
    &["cat", "/etc/resolv.conf"],
    &["cat", "/etc/nsswitch.conf"],
    &["resolvectl", "status"],
    &["nft", "list", "ruleset"],
    &["systemctl", "status", "--no-pager", "--lines=0", "UNIT"],
    &["journalctl", "--no-pager", "--unit=UNIT", "--lines=1000"],
];
/// A command that hangs is a finding, too.
const LIMIT: Duration = Duration::from_secs(10);
/// Of a command's output; of the journal, the last days of a device that is not well.
const MOST: usize = 512 * 1024;

pub(super) async fn run(socket: &Path, instance: Option<Instance>) -> Result<()> {
    say(
        "This report has names and addresses of your network, and no key and no token. Read it before you send it.",
    )?;
    part("cyphonic version", crate::VERSION)?;
    match status(socket).await {
        Ok(report) => part("cyphonic status --json", serde_json::to_string_pretty(&report)?)?,
        Err(error) => part("cyphonic status --json", error)?,
    }
    let unit = config::instance::unit();
    let (path, overrides) =
        (Config::path(None, instance.as_ref()), Overrides { instance, ..Overrides::default() });
    let title = path.display().to_string();
    match Config::load(&path, true, &overrides) {
        Ok(config) => part(&title, serde_yaml::to_string(&config)?)?,
        Err(error) => part(&title, error)?,
    }
    for command in COMMANDS {
        let command: Vec<_> = command.iter().map(|word| word.replace("UNIT", &unit)).collect();
        part(&command.join(" "), said(&command).await)?;
    }
    Ok(())
}

fn part(title: &str, text: impl Display) -> Result<()> {
    Ok(say(format_args!("\n===== {title}\n{}", without_tokens(&text.to_string())))?)
}

/// What a program says, or why it says nothing.
async fn said(command: &[impl AsRef<OsStr>]) -> String {
    let [program, arguments @ ..] = command else { return String::new() };
    let mut child = Command::new(program);
    let child = child.args(arguments).env("LC_ALL", "C.UTF-8").stdin(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(LIMIT, child.output()).await {
        Ok(Ok(output)) => {
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(last_lines(&text));
            if output.status.success() { text.into_owned() } else { format!("{text}({})", output.status) }
        }
        Ok(Err(error)) => format!("cannot be run: {error}"),
        Err(_) => format!("no answer in {} s", LIMIT.as_secs()),
    }
}

/// The last whole lines: of half a line nobody could tell that it has a token.
fn last_lines(text: &[u8]) -> &[u8] {
    let Some(from) = text.len().checked_sub(MOST) else { return text };
    let rest = text.get(from..).unwrap_or_default();
    let line = rest.iter().position(|byte| *byte == b'\n').map_or(rest.len(), |end| end + 1);
    rest.get(line..).unwrap_or_default()
}

/// Somebody may have written one into a unit, where its environment is set, or into the settings in the place
/// of its file's name, which errors then repeat: a report on an enrolment that
/// does not work would give away one that can still be used.
fn without_tokens(text: &str) -> String {
    let has_one = |line: &str| line.contains(token::SCHEME) || line.to_ascii_uppercase().contains("TOKEN=");
    let line = |line: &str| {
        if has_one(line) { "(a line with a token)\n".to_owned() } else { line.to_owned() }
    };
    text.split_inclusive('\n').map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_settings_are_not_shown() {
        for line in [
            "#CYPHONIC_TOKEN=abc",
            "Environment='X_Token=def'",
            "CYPHONIC_TOKEN = cyphonic-token-1.abc",
            "SetCredential=cyphonic.token:cyphonic-token-1.abc",
            "ExecStartPre=-/usr/bin/cyphonic up --token cyphonic-token-1.abc",
        ] {
            let settings = format!("CYPHONIC_CLOUD=cloud.example\n{line}\nlast");
            assert_eq!(
                without_tokens(&settings),
                "CYPHONIC_CLOUD=cloud.example\n(a line with a token)\nlast"
            );
        }
    }

    #[test]
    fn a_token_in_the_place_of_its_file_is_shown_by_no_part() {
        let settings: Config = serde_yaml::from_str("token_file: cyphonic-token-1.abc").unwrap();
        let settings = serde_yaml::to_string(&settings).unwrap();
        assert!(settings.contains(token::SCHEME), "else this says nothing: {settings}");
        let health = r#"{ "message": "cannot read the token file cyphonic-token-1.abc: no such file" }"#;
        for text in [settings.as_str(), health] {
            assert!(!without_tokens(text).contains(token::SCHEME), "{text}");
        }
    }

    #[test]
    fn what_is_cut_off_ends_with_a_line() {
        assert_eq!(last_lines(b"few"), b"few");
        let long = [b"half of a token".repeat(MOST / 10), b"\nwhole\n".to_vec()].concat();
        assert_eq!(last_lines(&long), b"whole\n");
    }

    #[tokio::test]
    async fn programs_that_fail_or_are_not_there_are_told_as_such() {
        assert_eq!(said(&["echo", "well"]).await, "well\n");
        assert!(said(&["sh", "-c", "echo ill >&2; exit 3"]).await.starts_with("ill\n(exit status: 3"));
        assert!(said(&["/nonexistent/program"]).await.starts_with("cannot be run: "));
    }
}
