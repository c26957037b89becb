//! What goes into a package, put in the places where its crate's `Cargo.toml` looks.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Package;
use crate::target::Target;
use crate::{shell, workspace};

/// The C library that packages ask for: Debian 12's, and so Raspberry Pi OS's of the same base. `Cargo.toml`
/// says the same.
const LIBC: (u32, u32) = (2, 36);

/// Stages a package for cargo-deb.
pub(super) fn prepare(
    package: &Package,
    version: &str,
    programs: &Path,
    target: Target,
    manuals: &Path,
) -> Result<()> {
    let stage = workspace::root().join("target/package").join(package.name);
    if stage.exists() {
        fs::remove_dir_all(&stage).with_context(|| format!("cannot clear {}", stage.display()))?;
    }
    fs::create_dir_all(stage.join("bin")).with_context(|| format!("cannot make {}", stage.display()))?;
    for program in package.programs {
        let built = programs.join(program);
        runs_on_debian(&built)?;
        target.strip(&built, &stage.join("bin").join(program))?;
        let manual = stage.join("manual");
        shell::run(Command::new(manuals.join(program)).arg("manual").arg(&manual))
            .with_context(|| format!("{program} wrote no manual"))?;
    }
    fs::write(stage.join("changelog"), changelog(package.name, version)?)
        .context("cannot write the package's changelog")?;
    fs::write(stage.join("overrides"), overrides(package.name))
        .context("cannot write what lintian is told")?;
    fs::write(stage.join("copyright"), copyright()?).context("cannot write the package's copyright file")
}

/// What a machine with a newer C library builds does not start on an older one, and its package would not say
/// so.
pub(crate) fn runs_on_debian(program: &Path) -> Result<()> {
    let mut readelf = Command::new("readelf");
    let text = shell::output(readelf.args(["--version-info", "--wide"]).arg(program))
        .with_context(|| format!("readelf cannot read {}", program.display()))?;
    match newest_libc(&text) {
        Some(needed) if needed > LIBC => bail!(
            "{} needs the C library {}.{}, newer than the {}.{} that packages promise: build them on Debian 12",
            program.display(),
            needed.0,
            needed.1,
            LIBC.0,
            LIBC.1
        ),
        Some(_) => Ok(()),
        None => bail!("{} does not link to the C library", program.display()),
    }
}

/// The newest version among those that symbols are asked for in, in what `readelf --version-info` prints.
fn newest_libc(text: &str) -> Option<(u32, u32)> {
    let versions = text.split("Name: GLIBC_").skip(1).filter_map(|rest| rest.split_whitespace().next());
    let numbers = versions.filter_map(|version| {
        let mut parts = version.split('.').map_while(|part| part.parse().ok());
        Some((parts.next()?, parts.next()?))
    });
    numbers.max()
}

/// In Debian's form, which says only what Debian asks: what changed is in the project's own.
fn changelog(package: &str, version: &str) -> Result<String> {
    let mut git = Command::new("git");
    git.current_dir(workspace::root()).args(["log", "-1", "--format=%cd", "--date=rfc2822"]);
    // Outside a repository: today.
    let date = shell::output(&mut git).or_else(|| shell::output(Command::new("date").arg("--rfc-email")));
    let date = date.context("neither git nor date(1) tells a date")?;
    Ok(format!(
        "{package} ({version}) unstable; urgency=medium\n\n  * What changed is told in changelog.gz, beside this file.\n\n -- {MAINTAINER}  {date}\n",
    ))
}

/// What lintian would report for reasons that are none here.
fn overrides(package: &str) -> String {
    format!(
        "# Programs in Rust carry their libraries, and link to the C library alone.\n{package}: embedded-library *\n\
         # No bug of Debian's is closed by a package from elsewhere.\n{package}: initial-upload-closes-no-bugs *\n"
    )
}

/// In the form that Debian's tools read. Debian has the text of one of the two licences, the other stands
/// there whole.
fn copyright() -> Result<String> {
    let file = workspace::root().join("LICENSE-MIT");
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let mit: String = text
        .lines()
        .map(|line| if line.trim().is_empty() { " .\n".to_owned() } else { format!(" {line}\n") })
        .collect();
    Ok(format!(
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: cyphonic\n\n\
         Files: *\nCopyright: 2026 The Cyphonic authors\nLicense: MIT or Apache-2.0\n\n\
         License: MIT\n{mit}\n\
         License: Apache-2.0\n On Debian systems, the text of the Apache License, version 2.0, is in\n /usr/share/common-licenses/Apache-2.0.\n"
    ))
}

/// As in `Cargo.toml`.
const MAINTAINER: &str = "The Cyphonic authors <cyphonic@users.noreply.github.com>";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::package::{PACKAGES, version};

    #[test]
    fn the_newest_version_of_the_c_library_is_found() {
        let text = "  0x0010:   Name: GLIBC_2.4  Flags: none  Version: 5\n  0x0020:   Name: GLIBC_2.34  Flags: none  Version: 4\n\
                    0x0030:   Name: GCC_3.0  Flags: none  Version: 3\n  0x0040:   Name: GLIBC_2.28  Flags: none";
        assert_eq!(newest_libc(text), Some((2, 34)));
        assert_eq!(newest_libc("No version information found"), None);
    }

    #[test]
    fn a_packages_name_and_changelog_have_its_revision() {
        let [agent, _] = &PACKAGES;
        let version = version(1234);
        assert_eq!(agent.file(1234, Target::Amd64), format!("cyphonic_{version}_amd64.deb"));
        let text = changelog(agent.name, &version).unwrap();
        assert!(version.ends_with("-1234") && text.starts_with(&format!("cyphonic ({version}) ")), "{text}");
    }

    #[test]
    fn packages_say_what_is_checked_here() {
        for krate in ["cyphonic-agent", "cyphonic-cloud"] {
            let file = workspace::root().join(krate).join("Cargo.toml");
            let text = fs::read_to_string(file).unwrap();
            assert!(text.contains(&format!("libc6 (>= {}.{})", LIBC.0, LIBC.1)), "{krate}");
            assert!(text.contains(MAINTAINER), "{krate}");
        }
    }
}
