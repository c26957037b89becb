//! The eBPF programs' test programs, and the script that runs them on another kernel.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use super::guest::Disk;
use super::report::{BROKEN, END, Report};
use crate::target::Target;
use crate::{shell, workspace};

/// Programs that the tests call.
pub(crate) const TOOLS: [&str; 3] = ["ip", "ethtool", "sysctl"];
/// Tests of what a kernel gained later, and that kernel.
const NEWER: [(&str, (u32, u32)); 1] = [("by_tcx", (6, 6))];

/// How much is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// Every test of programs and of AF_XDP.
    Whole,
    /// What [`crate::test`] has time for: every program loaded and its verdicts checked, without the tests
    /// that send tens of thousands of frames, race threads or count seconds.
    Short,
}

impl Extent {
    /// The library's tests that exercise programs by `BPF_PROG_TEST_RUN`, and those on devices.
    fn filters(self) -> &'static [&'static str] {
        match self {
            Self::Whole => &["bpf::", "relay::xdp::", "xsk::"],
            Self::Short => &["bpf::"],
        }
    }

    /// The integration tests that exercise programs and AF_XDP.
    fn integration(self) -> &'static [&'static str] {
        match self {
            Self::Whole => &["relay_program", "xsk"],
            Self::Short => &["relay_program"],
        }
    }

    fn left_out(self) -> &'static [&'static str] {
        match self {
            Self::Whole => &[],
            Self::Short => &["once_a_second", "damaged_frames", "half_a_leg", "one_anothers_way"],
        }
    }
}

/// The test programs, as cargo built them.
#[derive(Debug)]
pub(crate) struct Tests {
    target: Target,
    extent: Extent,
    /// The data plane's unit tests.
    library: PathBuf,
    /// The test that loads every program.
    load: PathBuf,
    /// [`Extent::integration`].
    integration: Vec<PathBuf>,
}

impl Tests {
    /// Builds them for a machine.
    pub(crate) fn build(target: Target, extent: Extent) -> Result<Self> {
        let mut cargo = shell::cargo();
        cargo.args(["test", "--no-run", "--locked"]);
        // What `cargo test --workspace` built here is taken as it is: built for one package, its dependencies
        // would have other features, and be built again.
        cargo.args(if target.is_host() { &["--workspace"][..] } else { &["-p", "cyphonic-dataplane"] });
        cargo.args(["--lib", "--test", "programs_load"]);
        cargo.args(extent.integration().iter().flat_map(|test| ["--test", test]));
        target.configure(&mut cargo);
        cargo.arg("--message-format=json").stderr(Stdio::inherit());
        let output = cargo.output().context("cannot start cargo")?;
        if !output.status.success() {
            bail!("the data plane's tests do not build for {target}");
        }
        let messages = String::from_utf8_lossy(&output.stdout);
        let find = |name: &str| {
            messages
                .lines()
                .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
                .filter(|message| message["target"]["name"] == name && message["profile"]["test"] == true)
                .find_map(|message| message["executable"].as_str().map(PathBuf::from))
                .with_context(|| format!("cargo built no test program {name}"))
        };
        let integration = extent.integration().iter().map(|test| find(test)).collect::<Result<_>>()?;
        let (library, load) = (find("cyphonic_dataplane")?, find("programs_load")?);
        Ok(Self { target, extent, library, load, integration })
    }

    /// How many they are. Each runs on every kernel, if without the tests that a kernel is too old for.
    fn count(&self) -> u64 {
        2 + self.integration.len() as u64
    }

    /// Reads what they printed.
    pub(crate) fn report(&self, text: &str) -> Report {
        Report::parse(text, self.count())
    }

    /// Runs them on the host, as the guest would.
    pub(super) fn run_here(&self) -> Result<Report> {
        let mut text = String::new();
        let integration = self.integration.iter().map(|program| (program, vec![]));
        let programs = [(&self.load, vec!["--nocapture"]), (&self.library, self.extent.filters().to_vec())];
        for (program, arguments) in programs.into_iter().chain(integration) {
            let mut command = shell::as_root("env")?;
            command.arg(format!("CYPHONIC_EBPF_OBJECTS={}", workspace::ebpf_objects().display()));
            command.arg(program).args(arguments).arg("--test-threads=1");
            let output = command.output().with_context(|| format!("cannot start {}", program.display()))?;
            text += &String::from_utf8_lossy(&output.stdout);
            if !output.status.success() {
                text += &format!("\n{BROKEN}{} ({})\n", program.display(), output.status);
            }
        }
        Ok(self.report(&(text + END)))
    }

    /// Puts them on a disk with what they need, and returns the lines of the guest's script that run them.
    pub(crate) fn install(&self, disk: &Disk, release: &str) -> Result<String> {
        for tool in TOOLS {
            disk.tool(tool)?;
        }
        disk.stripped(&self.library, "tests/library", self.target)?;
        disk.stripped(&self.load, "tests/load", self.target)?;
        for (number, test) in self.integration.iter().enumerate() {
            disk.stripped(test, &format!("tests/integration-{number}"), self.target)?;
        }
        for entry in std::fs::read_dir(workspace::ebpf_objects()).context("there are no eBPF objects")? {
            let object = entry?.path();
            let name = object.file_name().unwrap_or_default().to_string_lossy().into_owned();
            disk.file(&object, &format!("objects/{name}"))?;
        }
        let skips = newer_than(release).chain(self.extent.left_out().iter().copied());
        let skips: String = skips.map(|test| format!(" --skip {test}")).collect();
        Ok(script(self.extent, &skips))
    }
}

fn script(extent: Extent, skips: &str) -> String {
    format!(
        "export CYPHONIC_EBPF_OBJECTS=/objects\n\
         run() {{ \"$@\" --test-threads=1 2>&1 || printf '\\n{BROKEN}%s (%s)\\n' \"$1\" $?; }}\n\
         run /tests/load --nocapture\n\
         run /tests/library {}{skips}\n\
         for test in /tests/integration-*; do run $test{skips}; done\n",
        extent.filters().join(" ")
    )
}

/// The tests that this kernel is too old for.
fn newer_than(release: &str) -> impl Iterator<Item = &'static str> {
    let version = super::version(release);
    NEWER.into_iter().filter(move |(_, since)| version < *since).map(|(test, _)| test)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_names_a_test_program_that_crashes() {
        let folder = std::env::temp_dir().join(format!("cyphonic-suites-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        for (name, text) in [("load", "exit 0"), ("library", "kill -SEGV $$"), ("integration-0", "exit 0")] {
            std::fs::write(folder.join(name), text).unwrap();
        }
        let script = script(Extent::Short, " --skip slow").replace("/tests/", "$0/");
        let script = script.replace("{ \"$@\"", "{ sh \"$@\"");
        let output = std::process::Command::new("sh").args(["-c", &script]).arg(&folder).output().unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains(&format!("\n{BROKEN}{}/library (139)\n", folder.display())), "{said}");
        assert_eq!(said.matches(BROKEN).count(), 1, "{said}");
    }

    #[test]
    fn only_kernels_without_tcx_are_spared_its_test() {
        assert_eq!(newer_than("6.1.0-56-cloud-amd64").collect::<Vec<_>>(), ["by_tcx"]);
        assert_eq!(newer_than("6.12.117+deb12-cloud-amd64").count(), 0);
    }
}
