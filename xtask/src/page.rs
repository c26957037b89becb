//! The pages of `docs/` that verbs write when they are asked to: each shows a whole run.

use anyhow::{Result, bail};

/// Of these options, those that were given.
pub(crate) fn given<const N: usize>(options: [(&'static str, bool); N]) -> Vec<&'static str> {
    options.into_iter().filter_map(|(option, given)| given.then_some(option)).collect()
}

/// Refuses to write a page about a run that these options make another one.
pub(crate) fn demand_whole(page: &str, partial: &[&str]) -> Result<()> {
    if partial.is_empty() {
        return Ok(());
    }
    bail!(
        "docs/{page} shows whole runs of the programs that they build, and this would be none: leave out \
         --document, or {}",
        partial.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::{Cli, Verb};

    fn partial(line: &str) -> Vec<&'static str> {
        match Cli::try_parse_from(format!("xtask {line}").split(' ')).unwrap().verb {
            Verb::NatGrid(args) => args.partial(),
            Verb::Roam(args) => args.partial(),
            Verb::Chaos(args) => args.partial(),
            Verb::Scale(args) => args.partial(),
            _ => unreachable!("{line} writes no page"),
        }
    }

    #[test]
    fn only_what_makes_a_run_another_one_stands_in_a_pages_way() {
        for whole in [
            "nat-grid --document --json x --name n",
            "roam --document --json x",
            "chaos --document --seed 7 --faults 61",
            "scale --document --name n",
        ] {
            assert_eq!(partial(whole), [""; 0], "{whole}");
        }
        for (line, options) in [
            ("nat-grid --quick", ["--quick"].as_slice()),
            ("nat-grid --pair port:six --times 9", &["--pair"]),
            ("nat-grid --idle 10m", &["--idle"]),
            ("nat-grid --scene nat-grid-pair --ssh x", &["--scene", "--ssh"]),
            (
                "nat-grid --profile paper --topology x --programs x",
                &["--profile", "--topology", "--programs"],
            ),
            ("roam --quick --untimed", &["--quick", "--untimed"]),
            ("roam --ring xdp --programs x", &["--ring", "--programs"]),
            ("roam --topology x --ssh x --only direct", &["--only", "--topology", "--ssh"]),
            ("chaos --faults 59 --ring xdp --relay generic", &["--faults", "--ring", "--relay"]),
            ("chaos --topology x --programs x", &["--topology", "--programs"]),
            ("scale --quick --nodes 9", &["--quick", "--nodes"]),
            ("scale --without-million --programs x", &["--without-million", "--programs"]),
        ] {
            assert_eq!(partial(line), options, "{line}");
        }
    }

    #[test]
    fn a_page_about_a_part_is_refused_with_the_reason() {
        demand_whole("roam.md", &[]).unwrap();
        let error = demand_whole("roam.md", &["--quick", "--ring"]).unwrap_err().to_string();
        assert!(error.starts_with("docs/roam.md shows whole runs"), "{error}");
        assert!(error.ends_with("leave out --document, or --quick, --ring"), "{error}");
    }
}
