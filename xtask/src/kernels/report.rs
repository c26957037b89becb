//! What the test programs said on one kernel.

/// Ends the guest's output: what comes without it was cut short.
pub(crate) const END: &str = "guest: end";

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
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    failures: Vec<String>,
    complete: bool,
}

impl Report {
    /// Reads what the test programs printed.
    pub(crate) fn parse(text: &str) -> Self {
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
        assert_eq!((report.suites, report.passed, report.failed, report.failure()), (2, 31, 0, None));
        let last = Program { name: "relay/cyphonic_relay".into(), instructions: 2051 };
        assert_eq!(report.programs.last(), Some(&last));
        assert_eq!(report.programs.len(), 2);
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
