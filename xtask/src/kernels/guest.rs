//! The emulated machine: an initial RAM disk with the test programs, and what they said.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::image::Kernel;
use crate::{shell, workspace};

/// Programs that the tests call.
const TOOLS: [&str; 3] = ["ip", "ethtool", "sysctl"];
/// The emulated machine never runs longer: a kernel that hangs is a failure too.
const LONGEST_SECONDS: &str = "900";
/// The library's tests that exercise programs by `BPF_PROG_TEST_RUN`, and those on devices.
const FILTERS: [&str; 3] = ["bpf::", "relay::xdp::", "xsk::"];
/// The integration tests that exercise programs and AF_XDP.
const INTEGRATION: [&str; 2] = ["relay_program", "xsk"];
/// Tests of what a kernel gained later, and that kernel.
const NEWER: [(&str, (u32, u32)); 1] = [("by_tcx", (6, 6))];
/// Ends the guest's output: what comes without it was cut short.
const END: &str = "guest: end";

/// The test programs, as cargo built them.
#[derive(Debug)]
pub(super) struct Tests {
    /// The data plane's unit tests.
    library: PathBuf,
    /// The test that loads every program.
    load: PathBuf,
    /// [`INTEGRATION`].
    integration: Vec<PathBuf>,
}

/// A program that the verifier took.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Program {
    /// Object and program.
    pub(super) name: String,
    /// Instructions the verifier walked.
    pub(super) instructions: u32,
}

/// What the test programs said on one kernel.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) programs: Vec<Program>,
    pub(super) refused: Vec<String>,
    pub(super) passed: usize,
    pub(super) failed: usize,
    failures: Vec<String>,
    complete: bool,
}

impl Tests {
    /// Builds them.
    pub(super) fn build() -> Result<Self> {
        let mut cargo = shell::cargo();
        cargo.args([
            "test",
            "--no-run",
            "--locked",
            "-p",
            "cyphonic-dataplane",
            "--lib",
            "--test",
            "programs_load",
        ]);
        cargo.args(INTEGRATION.iter().flat_map(|test| ["--test", test]));
        cargo.arg("--message-format=json").stderr(Stdio::inherit());
        let output = cargo.output().context("cannot start cargo")?;
        if !output.status.success() {
            bail!("the data plane's tests do not build");
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
        let integration = INTEGRATION.iter().map(|test| find(test)).collect::<Result<_>>()?;
        Ok(Self { library: find("cyphonic_dataplane")?, load: find("programs_load")?, integration })
    }

    /// Runs them on the host, as the guest would.
    pub(super) fn run_here(&self) -> Result<Report> {
        let mut text = String::new();
        let integration = self.integration.iter().map(|program| (program, vec![]));
        let programs = [(&self.load, vec!["--nocapture"]), (&self.library, FILTERS.to_vec())];
        for (program, arguments) in programs.into_iter().chain(integration) {
            let mut command = shell::as_root("env")?;
            command.arg(format!("CYPHONIC_EBPF_OBJECTS={}", workspace::ebpf_objects().display()));
            command.arg(program).args(arguments).arg("--test-threads=1");
            let output = command.output().with_context(|| format!("cannot start {}", program.display()))?;
            text += &String::from_utf8_lossy(&output.stdout);
        }
        Ok(Report::parse(&(text + END)))
    }
}

/// Boots a kernel with the tests as its only program.
pub(super) fn boot(kernel: &Kernel, tests: &Tests) -> Result<Report> {
    let root = workspace::root().join("target/kernels/root").join(&kernel.release);
    let beside = |kind: &str| root.with_file_name(format!("{}.{kind}", kernel.release));
    let (disk, log) = (beside("cpio"), beside("log"));
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("cannot clear {}", root.display()))?;
    }
    furnish(&root, kernel, tests)?;
    pack(&root, &disk)?;
    let output = Command::new("timeout")
        .args([
            LONGEST_SECONDS,
            "qemu-system-x86_64",
            "-accel",
            "tcg",
            "-cpu",
            "max",
            "-smp",
            "2",
            "-m",
            "2G",
        ])
        .args(["-nographic", "-no-reboot", "-net", "none", "-append", "console=ttyS0 panic=-1 quiet"])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(&disk)
        .stdin(Stdio::null())
        .output()
        .context("cannot start qemu-system-x86_64")?;
    let text = String::from_utf8_lossy(&output.stdout);
    fs::write(&log, text.as_bytes())?;
    let report = Report::parse(&text);
    if report.failure().is_some() {
        println!("test-kernels: what {} said is in {}", kernel.release, log.display());
    }
    Ok(report)
}

fn furnish(root: &Path, kernel: &Kernel, tests: &Tests) -> Result<()> {
    for directory in ["bin", "proc", "sys", "dev", "tmp", "run", "modules", "tests", "objects"] {
        fs::create_dir_all(root.join(directory))?;
    }
    let busybox = shell::find("busybox").context("there is no busybox: install busybox-static")?;
    // Some are not static.
    copy_with_libraries(&busybox, &root.join("bin/busybox"), root)?;
    for tool in TOOLS {
        let file = shell::find(tool).with_context(|| format!("there is no {tool}"))?;
        copy_with_libraries(&file, &root.join("bin").join(tool), root)?;
    }
    copy_with_libraries(&tests.library, &root.join("tests/library"), root)?;
    copy_with_libraries(&tests.load, &root.join("tests/load"), root)?;
    for (number, test) in tests.integration.iter().enumerate() {
        copy_with_libraries(test, &root.join(format!("tests/integration-{number}")), root)?;
    }
    for entry in fs::read_dir(workspace::ebpf_objects())? {
        let object = entry?.path();
        copy(&object, &root.join("objects").join(object.file_name().unwrap_or_default()))?;
    }
    for (number, module) in kernel.modules.iter().enumerate() {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        copy(module, &root.join("modules").join(format!("{number:02}-{name}")))?;
    }
    write_program(&root.join("init"), &init(&kernel.release))
}

/// What the guest does. Busybox is all it has, but for the tests.
fn init(release: &str) -> String {
    let skips: String = newer_than(release).map(|test| format!(" --skip {test}")).collect();
    format!(
        "#!/bin/busybox sh\n\
         /bin/busybox --install -s /bin 2>/dev/null\n\
         export PATH=/bin RUST_BACKTRACE=0 CYPHONIC_EBPF_OBJECTS=/objects\n\
         mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs run /run\n\
         mount -t bpf bpf /sys/fs/bpf; ip link set lo up\n\
         for module in /modules/*; do case $module in *.xz) xz -d $module; insmod ${{module%.xz}};; *) insmod $module;; esac; done\n\
         mkdir -p /dev/net; [ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200\n\
         /tests/load --nocapture --test-threads=1 2>&1\n\
         /tests/library {} --test-threads=1{skips} 2>&1\n\
         for test in /tests/integration-*; do $test --test-threads=1 2>&1; done\n\
         echo '{END}'\n\
         poweroff -f\n",
        FILTERS.join(" ")
    )
}

/// The tests that this kernel is too old for.
fn newer_than(release: &str) -> impl Iterator<Item = &'static str> {
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    NEWER.into_iter().filter(move |(_, since)| version < *since).map(|(test, _)| test)
}

fn write_program(file: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::write(file, text)?;
    Ok(fs::set_permissions(file, fs::Permissions::from_mode(0o755))?)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

/// The program and every library its loader would find, at their own places.
fn copy_with_libraries(program: &Path, to: &Path, root: &Path) -> Result<()> {
    copy(program, to)?;
    let libraries = shell::output(Command::new("ldd").arg(program)).unwrap_or_default();
    for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        let place = root.join(library.trim_start_matches('/'));
        if !place.exists() {
            fs::create_dir_all(place.parent().unwrap_or(root))?;
            copy(Path::new(library), &place)?;
        }
    }
    Ok(())
}

fn pack(root: &Path, disk: &Path) -> Result<()> {
    let file = fs::File::create(disk).with_context(|| format!("cannot make {}", disk.display()))?;
    let mut names = Command::new("find").arg(".").current_dir(root).stdout(Stdio::piped()).spawn()?;
    let listed = names.stdout.take().context("find has no output")?;
    let status = Command::new("cpio")
        .args(["--quiet", "-o", "-H", "newc"])
        .current_dir(root)
        .stdin(listed)
        .stdout(file)
        .status()
        .context("cannot start cpio")?;
    names.wait()?;
    if !status.success() {
        bail!("cpio failed: {status}");
    }
    std::io::stdout().flush()?;
    Ok(())
}

impl Report {
    /// Reads what the test programs printed.
    fn parse(text: &str) -> Self {
        let mut report = Self::default();
        for line in text.lines().map(str::trim_end) {
            // libtest writes a test's name first, so a line of ours may follow it.
            if let Some((_, rest)) =
                line.split_once("program ").filter(|(_, rest)| rest.contains("verified_instructions="))
            {
                report.programs.extend(program(rest));
            } else if let Some(name) = line.strip_prefix("refused ") {
                report.refused.push(name.to_owned());
            } else if line.starts_with("test ") && line.ends_with("FAILED") {
                report.failures.push(line.to_owned());
            } else if let Some(result) = line.strip_prefix("test result: ") {
                report.passed += before(result, " passed");
                report.failed += before(result, " failed");
            }
            report.complete |= line.ends_with(END);
        }
        report
    }

    /// Why this kernel will not do, if it will not.
    pub(super) fn failure(&self) -> Option<String> {
        if !self.complete {
            return Some("the machine stopped before the tests were over".to_owned());
        }
        if !self.refused.is_empty() {
            return Some(format!("the verifier refused {}", self.refused.join(", ")));
        }
        if self.failed > 0 {
            return Some(format!("{} tests failed: {}", self.failed, self.failures.join("; ")));
        }
        (self.passed == 0 || self.programs.is_empty()).then(|| "no test ran".to_owned())
    }
}

/// `agent/cyphonic_egress: verified_instructions=412 translated_bytes=…`
fn program(text: &str) -> Option<Program> {
    let (name, rest) = text.split_once(": ")?;
    let instructions = rest.strip_prefix("verified_instructions=")?.split(' ').next()?.parse().ok()?;
    Some(Program { name: name.to_owned(), instructions })
}

fn before(text: &str, word: &str) -> usize {
    let count = text.split(word).next().and_then(|head| head.rsplit(' ').next());
    count.and_then(|count| count.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "test every ... program agent/cyphonic_egress: verified_instructions=412 translated_bytes=900\r\n\
                        program relay/cyphonic_relay: verified_instructions=2051 translated_bytes=9000\r\n\
                        ok\r\ntest result: ok. 1 passed; 0 failed; 0 ignored\r\n\
                        test result: ok. 30 passed; 0 failed; 0 ignored\r\nguest: end\r\n";

    #[test]
    fn a_good_run_is_counted() {
        let report = Report::parse(GOOD);
        assert_eq!((report.passed, report.failed, report.failure()), (31, 0, None));
        let last = Program { name: "relay/cyphonic_relay".into(), instructions: 2051 };
        assert_eq!(report.programs.last(), Some(&last));
        assert_eq!(report.programs.len(), 2);
    }

    #[test]
    fn only_kernels_without_tcx_are_spared_its_test() {
        assert_eq!(newer_than("6.1.0-56-cloud-amd64").collect::<Vec<_>>(), ["by_tcx"]);
        assert_eq!(newer_than("6.12.117+deb12-cloud-amd64").count(), 0);
    }

    #[test]
    fn a_machine_that_stops_a_refusal_and_a_failure_are_failures() {
        let cut = Report::parse(GOOD.trim_end().trim_end_matches(END));
        assert!(cut.failure().unwrap().contains("stopped"));
        let refused = Report::parse(&format!("refused agent/x\n{GOOD}"));
        assert!(refused.failure().unwrap().contains("agent/x"));
        let failed = Report::parse(&GOOD.replace("30 passed; 0 failed", "29 passed; 1 failed"));
        assert!(failed.failure().unwrap().contains("1 tests failed"));
        assert!(Report::parse(END).failure().unwrap().contains("no test ran"));
    }
}
