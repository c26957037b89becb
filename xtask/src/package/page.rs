//! The commands that a page of documentation tells its reader to type.
//!
//! They stand in fenced blocks whose opening says on which machine, after the language: ```` ```sh server
//! ````. A block for several (`sh pi-1 pi-2`) is written for the first; on the others their own name stands
//! in its place.

use anyhow::{Result, bail};

/// A command, and where it is typed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) machine: String,
    pub(super) command: String,
}

/// A page.
#[derive(Debug)]
pub(super) struct Page {
    name: String,
    /// By heading.
    chapters: Vec<(String, Vec<Step>)>,
}

impl Page {
    /// Reads a page. A block without a machine or without a command is an error.
    pub(super) fn parse(name: &str, text: &str) -> Result<Self> {
        let mut chapters: Vec<(String, Vec<Step>)> = Vec::new();
        let mut heading = "";
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if let Some(opening) = line.strip_prefix("```") {
                let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
                let mut words = opening.split_whitespace();
                if words.next() != Some("sh") {
                    continue;
                }
                let machines: Vec<&str> = words.collect();
                let steps = steps(&machines, &block);
                if steps.is_empty() {
                    bail!("docs/{name}, {heading}: a block of commands says for no machine what to do");
                }
                match chapters.last_mut() {
                    Some((last, chapter)) if last == heading => chapter.extend(steps),
                    _ => chapters.push((heading.to_owned(), steps)),
                }
            } else if line.starts_with('#') {
                heading = line.trim_start_matches('#').trim();
            }
        }
        Ok(Self { name: name.to_owned(), chapters })
    }

    /// Page, heading and commands.
    pub(super) fn chapters(&self) -> impl Iterator<Item = (&str, &str, &[Step])> {
        self.chapters.iter().map(|(heading, steps)| (&*self.name, &**heading, &**steps))
    }
}

fn steps(machines: &[&str], block: &[&str]) -> Vec<Step> {
    let Some(first) = machines.first() else { return Vec::new() };
    machines
        .iter()
        .flat_map(|machine| {
            block
                .iter()
                .map(|line| line.trim())
                .filter(|line| !line.is_empty())
                .map(|line| Step { machine: (*machine).to_owned(), command: line.replace(first, machine) })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_with_their_machines() {
        let text = "# Title\n\n## Install\n\n```sh a b\nrun a.deb\n\nlook\n```\ntext\n```yaml\nkey: 1\n```\n```sh c\nend\n```\n";
        let page = Page::parse("p.md", text).unwrap();
        let chapters: Vec<_> = page.chapters().collect();
        let step = |machine: &str, command: &str| Step { machine: machine.into(), command: command.into() };
        let steps = [
            step("a", "run a.deb"),
            step("a", "look"),
            step("b", "run b.deb"),
            step("b", "look"),
            step("c", "end"),
        ];
        assert_eq!(chapters, [("p.md", "Install", &steps[..])]);
    }

    #[test]
    fn a_block_without_machine_or_commands_is_an_error() {
        assert!(
            Page::parse("p.md", "## Install\n```sh\nrun\n```\n").unwrap_err().to_string().contains("Install")
        );
        assert!(Page::parse("p.md", "```sh a\n```\n").is_err());
    }
}
