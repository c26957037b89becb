//! The commands of `docs/quick-start.md` and `docs/operations.md`, typed as they stand there, on a server and
//! two devices.
//!
//! The three are containers with systemd on an emulated machine, in the lab's networks: the devices behind a
//! NAT each. The script (`quick_start.sh`) has lines `#: PAGE HEADING`, in whose place come the commands that
//! the page has under that heading, and between them what a person would look at. So page and test cannot
//! differ, and no command of a page is left out.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::page::{Page, Step};
use super::trial::Trial;
use crate::server::Server;
use crate::target::Target;
use crate::workspace;

const SCRIPT: &str = include_str!("quick_start.sh");
const PAGES: [&str; 2] = ["quick-start.md", "operations.md"];
/// What the pages tell the reader to replace, and what is there in the lab.
const IN_PLACE: [(&str, &str); 4] = [
    // The server's address in the lab's topology.
    ("203.0.113.10", "192.0.2.2"),
    // The emulated devices are PCs.
    ("_arm64", "_amd64"),
    ("_VERSION_", concat!("_", env!("CARGO_PKG_VERSION"), "-1_")),
    ("_NEW_", concat!("_", env!("CARGO_PKG_VERSION"), "-2_")),
];

/// How the command begins that made the packages: it has been given before the machine started.
const GIVEN: &str = "cargo xtask package ";

/// A machine on which they are typed, with the packages in `debs`: the first revision, and the one to upgrade
/// to.
pub(super) fn trial(debs: &[PathBuf]) -> Result<Trial> {
    let server = Server::furnish("docs")?;
    for deb in debs {
        server.file(
            deb,
            &format!("repository/target/debian/{}", deb.file_name().unwrap_or_default().display()),
        )?;
    }
    // The lab is built by this very program.
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let stripped = workspace::root().join("target/package/xtask");
    Target::Amd64.strip(&program, &stripped)?;
    server.file(&stripped, "repository/xtask")?;
    server.file(&workspace::root().join("vagrant/topology.yaml"), "repository/topology.yaml")?;
    let pages = read(&workspace::root().join("docs"))?;
    Ok(Trial { name: "test-packages (docs)", server, script: script(SCRIPT, &pages)? })
}

fn read(folder: &Path) -> Result<Vec<Page>> {
    PAGES
        .iter()
        .map(|name| {
            let file = folder.join(name);
            let text =
                fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            Page::parse(name, &text)
        })
        .collect()
}

/// The script with the pages' commands in their places.
fn script(template: &str, pages: &[Page]) -> Result<String> {
    let mut left: Vec<(&str, &str, &[Step])> = pages.iter().flat_map(Page::chapters).collect();
    let mut script = String::new();
    for line in template.lines() {
        let Some(place) = line.strip_prefix("#: ") else {
            script.push_str(line);
            script.push('\n');
            continue;
        };
        let found = left
            .iter()
            .position(|(page, heading, _)| place.strip_prefix(page) == Some(&format!(" {heading}")));
        let Some(found) = found else {
            bail!("no page has commands under `{place}` that have not been typed yet");
        };
        let (_, _, steps) = left.remove(found);
        let steps = steps.iter().filter(|step| !step.command.starts_with(GIVEN));
        steps.for_each(|step| script.push_str(&typed(step)));
    }
    match left.first() {
        None => Ok(script),
        Some((page, heading, _)) => bail!("the commands under `{heading}` in docs/{page} are not tried"),
    }
}

/// A line of the script: `step MACHINE 'COMMAND'`.
fn typed(step: &Step) -> String {
    let command =
        IN_PLACE.iter().fold(step.command.clone(), |command, (there, here)| command.replace(there, here));
    format!("step {} '{}'\n", step.machine, command.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_of_the_pages_is_tried() {
        let pages = read(&workspace::root().join("docs")).unwrap();
        let script = script(SCRIPT, &pages).unwrap();
        assert!(
            script.contains("step pi-2 'cyphonic up --token file:pi-2.token --cloud 192.0.2.2:443'"),
            "{script}"
        );
        for (there, _) in IN_PLACE {
            assert!(!script.contains(there), "{there}: {script}");
        }
    }

    #[test]
    fn a_command_that_is_forgotten_is_an_error() {
        let page = Page::parse(
            "p.md",
            "## Do it\n\n```sh pc\nfirst 'quoted'\n```\n\n## Then\n\n```sh pc\nsecond\n```\n",
        )
        .unwrap();
        let script = |template: &str| script(template, std::slice::from_ref(&page));
        let whole = script("#: p.md Do it\nlook\n#: p.md Then\n").unwrap();
        assert_eq!(whole, "step pc 'first '\\''quoted'\\'''\nlook\nstep pc 'second'\n");
        assert!(script("#: p.md Do it\n").unwrap_err().to_string().contains("Then"));
        assert!(script("#: p.md Undone\n").unwrap_err().to_string().contains("Undone"));
    }
}
