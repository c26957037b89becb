//! What the test programs said on one kernel.

/// Ends the guest's output: what comes without it was cut short.
pub(crate) const END: &str = "guest: end";

/// Begins a line that names a test program which ended otherwise than with success.
pub(crate) const BROKEN: &str = "broken test program ";

/// A program that the verifier took.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Program {
    /// Object and program.
    pub(crate) name: String,
    /// Instructions the verifier walked.
    pub(crate) instructions: u32,
}

/// What the test programs said on one kernel.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) programs: Vec<Program>,
    pub(crate) refused: Vec<String>,
    /// Test programs that came to their end.
    pub(crate) suites: u64,
    /// Test programs that were started.
    started: u64,
    /// Those that did not end with success.
    broken: Vec<String>,
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    failures: Vec<String>,
    complete: bool,
}

impl Report {
    /// Reads what the test programs printed, so many as were `started`.
    pub(crate) fn parse(text: &str, started: u64) -> Self {
        let mut report = Self { started, ..Self::default() };
        for line in text.lines().map(str::trim_end) {
            // libtest writes a test's name first, so a line of ours may follow it.
            if let Some((_, rest)) =
                line.split_once("program ").filter(|(_, rest)| rest.contains("verified_instructions="))
            {
                report.programs.extend(program(rest));
            } else if let Some(name) = line.strip_prefix("refused ") {
                report.refused.push(name.to_owned());
            } else if let Some(name) = line.strip_prefix(BROKEN) {
                report.broken.push(name.to_owned());
            } else if line.starts_with("test ") && line.ends_with("FAILED") {
                report.failures.push(line.to_owned());
            } else if let Some(result) = line.strip_prefix("test result: ") {
                report.suites += 1;
                report.passed += before(result, " passed");
                report.failed += before(result, " failed");
            }
            report.complete |= line.ends_with(END);
        }
        report
    }

    /// Why this kernel will not do, if it will not.
    pub(crate) fn failure(&self) -> Option<String> {
        if !self.complete {
            return Some("the machine stopped before the tests were over".to_owned());
        }
        if !self.refused.is_empty() {
            return Some(format!("the verifier refused {}", self.refused.join(", ")));
        }
        if self.failed > 0 {
            return Some(format!("{} tests failed: {}", self.failed, self.failures.join("; ")));
        }
        if self.passed == 0 || self.programs.is_empty() {
            return Some("no test ran".to_owned());
        }
        // One that crashes has no failed test: it says nothing of its tests at all.
        if !self.broken.is_empty() {
            return Some(format!("these test programs crashed: {}", self.broken.join(", ")));
        }
        (self.suites < self.started).then(|| {
            format!("{} of {} test programs reported nothing", self.started - self.suites, self.started)
        })
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
        let report = Report::parse(GOOD, 2);
        assert_eq!((report.suites, report.passed, report.failed, report.failure()), (2, 31, 0, None));
        let last = Program { name: "relay/cyphonic_relay".into(), instructions: 2051 };
        assert_eq!(report.programs.last(), Some(&last));
        assert_eq!(report.programs.len(), 2);
    }

    #[test]
    fn a_machine_that_stops_a_refusal_and_a_failure_are_failures() {
        let parse = |text: &str| Report::parse(text, 2);
        let cut = parse(GOOD.trim_end().trim_end_matches(END));
        assert!(cut.failure().unwrap().contains("stopped"));
        let refused = parse(&format!("refused agent/x\n{GOOD}"));
        assert!(refused.failure().unwrap().contains("agent/x"));
        let failed = parse(&GOOD.replace("30 passed; 0 failed", "29 passed; 1 failed"));
        assert!(failed.failure().unwrap().contains("1 tests failed"));
        assert!(parse(END).failure().unwrap().contains("no test ran"));
    }

    #[test]
    fn a_test_program_that_crashes_is_a_failure_though_no_test_of_it_failed() {
        let silent = GOOD.replace("test result: ok. 30 passed; 0 failed; 0 ignored\r\n", "");
        let failure = Report::parse(&silent, 2).failure().unwrap();
        assert_eq!(failure, "1 of 2 test programs reported nothing");
        let late = Report::parse(&format!("{BROKEN}library\r\n{GOOD}"), 2).failure().unwrap();
        assert_eq!(late, "these test programs crashed: library");
    }
}
